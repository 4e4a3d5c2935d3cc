"""From a language model's numbered answer to the captions of a plate."""

import re


def numbered_captions(text: str, count: int) -> list[str]:
    """The captions of "1. …  2. …  3. …", exactly `count`; an empty list where the text does not parse.

    The first number may be missing, because it may have been forced on the model (`Prompt.prefix`). A caption is one
    paragraph; what follows the last one after an empty line is not part of it.
    """
    if not re.match(r"\s*\d+[.)]", text):
        text = f"1. {text}"
    pieces = re.split(r"(?m)^\s*(\d+)[.)][ \t]*", text)  # "", number, caption, number, caption, …
    numbers, bodies = pieces[1::2], pieces[2::2]
    captions = [" ".join(body.strip().split("\n\n")[0].split()) for body in bodies]
    wanted = [str(i) for i in range(1, count + 1)]
    return captions if numbers == wanted and all(captions) else []


def even_captions(text: str, count: int) -> list[str]:
    """The text cut into `count` pieces of one length, for models with random weights, which number nothing."""
    size = len(text) // count
    return [text[i * size : (i + 1) * size] for i in range(count)] if size else []
