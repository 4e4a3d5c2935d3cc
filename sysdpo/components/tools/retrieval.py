"""Retrieval as a tool: the passages of a folder of text files that share most with a query, by BM25."""

from importlib.resources import files
from pathlib import Path

import bm25s

from sysdpo.errors import SettingError

SHIPPED = Path(str(files("sysdpo"))) / "assets" / "passages"
"""A few texts to try with: everyday knowledge in short paragraphs, written for this project."""

SUFFIXES = (".txt", ".md")


class Passages:
    """A lexical index over the paragraphs of all .txt and .md files below a folder; calling it searches.

    Args:
        folder: the texts, UTF-8, paragraphs separated by empty lines; None: the shipped ones.
        k: passages returned at most.
        max_characters: of all passages together; the last one is cut off at a word.
    """

    def __init__(self, folder: str | None = None, k: int = 2, max_characters: int = 600) -> None:
        if k < 1 or max_characters < 1:
            raise SettingError(f"retrieval: k={k} and max_characters={max_characters} must be at least 1.")
        self.passages = read_passages(Path(folder).expanduser() if folder is not None else SHIPPED)
        self.k, self.max_characters = min(k, len(self.passages)), max_characters
        self._index = bm25s.BM25()
        self._index.index(self._tokens(self.passages), show_progress=False)

    @staticmethod
    def _tokens(texts: list[str]) -> list[list[str]]:
        return bm25s.tokenize(texts, stopwords="en", return_ids=False, show_progress=False)

    def __call__(self, query: str) -> str:
        """The best passages, one a paragraph, best first; empty if none shares a word with the query."""
        found, scores = self._index.retrieve(self._tokens([query]), k=self.k, show_progress=False)
        best = [self.passages[i] for i, score in zip(found[0], scores[0], strict=True) if score > 0]
        text = "\n\n".join(best)
        return text if len(text) <= self.max_characters else text[: self.max_characters].rpartition(" ")[0]


def read_passages(folder: Path) -> list[str]:
    """The paragraphs of all text files below a folder, in the order of their paths."""
    if not folder.is_dir():
        raise SettingError(f"retrieval: folder={folder}: there is no such folder.")
    passages = []
    for path in sorted(p for p in folder.rglob("*") if p.suffix in SUFFIXES):
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise SettingError(f"retrieval: {path.name} in {folder} is not UTF-8; convert it.") from error
        passages += [" ".join(paragraph.split()) for paragraph in text.split("\n\n") if paragraph.strip()]
    if not passages:
        raise SettingError(f"retrieval: folder={folder} holds no text; it needs {' or '.join(SUFFIXES)} files.")
    return passages
