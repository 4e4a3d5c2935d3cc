"""Write user prompts for image progressions with any OpenAI-compatible language model, as the paper did with GPT-4.

    OPENAI_API_KEY=… python scripts/generate_prompts.py --model gpt-4o-2024-08-06 --per-style 7 --output prompts.jsonl
    python scripts/generate_prompts.py --base-url http://127.0.0.1:8000/v1 --api-key-env '' --model … --output FILE

40 attributes x 4 styles x `--per-style`. Answers are checked and compared with what is there; the price is named before
anything is spent; run again, the command asks only for what is lacking. Use: `+dataset.prompts=prompts.jsonl`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sysdpo.errors import SettingError, one_line
from sysdpo.evaluation.judges.endpoint import ChatEndpoint
from sysdpo.tasks.progression.generated_prompts import (
    STYLES,
    Collection,
    cost,
    generate_prompts,
    make_slots,
    plan_requests,
)
from sysdpo.tasks.progression.prompts import NOUNS


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="the endpoint's name of the model")
    parser.add_argument("--output", type=Path, required=True, help="JSON lines; an existing file is completed")
    parser.add_argument("--per-style", type=int, default=7, help="prompts an attribute and style (default %(default)s)")
    parser.add_argument("--attributes", nargs="+", default=list(NOUNS), metavar="NAME", help="default: all forty")
    parser.add_argument("--styles", nargs="+", default=list(STYLES), metavar="NAME", help="default: all four")
    parser.add_argument("--batch", type=int, default=10, help="prompts a request (default %(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=5, help="times that what lacks is asked for (default %(default)s)"
    )
    parser.add_argument("--base-url", default="https://api.openai.com/v1")
    parser.add_argument(
        "--api-key-env", default="OPENAI_API_KEY", help="NAME of the variable with the key; '' for none"
    )
    parser.add_argument("--concurrency", type=int, default=8, help="requests under way at once (default %(default)s)")
    parser.add_argument("--timeout", type=float, default=120, help="seconds for one attempt (default %(default)s)")
    parser.add_argument("--max-attempts", type=int, default=8, help="per request (default %(default)s)")
    parser.add_argument("--dollars-per-million-prompt-tokens", type=float, default=2.5)
    parser.add_argument("--dollars-per-million-completion-tokens", type=float, default=10.0)
    parser.add_argument("--yes", action="store_true", help="spend what the estimate names without asking")
    return parser.parse_args(arguments)


def run(args: argparse.Namespace) -> None:
    if args.per_style < 1 or args.batch < 1 or args.rounds < 1:
        raise SettingError("--per-style, --batch and --rounds must be at least 1.")
    endpoint = ChatEndpoint(
        args.base_url,
        args.api_key_env or None,
        concurrency=args.concurrency,
        timeout_s=args.timeout,
        max_attempts=args.max_attempts,
    )
    slots = make_slots(args.attributes, args.styles)
    collection = Collection.open(args.output, args.per_style)
    planned = plan_requests(collection, slots, args.model, args.batch, 0)
    if planned:
        endpoint.key()
        prices = (args.dollars_per_million_prompt_tokens, args.dollars_per_million_completion_tokens)
        calls, dollars = cost(planned, prices)
        _confirm(f"{args.model} is asked {calls} times, about ${dollars:.2f} at most a round", dollars == 0 or args.yes)
        args.output.parent.mkdir(parents=True, exist_ok=True)
        dropped = generate_prompts(endpoint, collection, slots, args.model, batch=args.batch, rounds=args.rounds)
        print(f"dropped: {dropped['invalid']} invalid, {dropped['repeated']} repeated")
    print(
        f"{args.output}: {sum(len(collection.of(slot)) for slot in slots)} prompts for {len(slots)} (attribute, style)"
    )


def _confirm(line: str, agreed: bool) -> None:
    print(line)
    if agreed:
        return
    if sys.stdin is None or not sys.stdin.isatty():
        raise SettingError(f"{line}, and nobody is there to agree; give --yes to spend that.")
    if input("Go on? [y/N] ").strip().lower() not in ("y", "yes"):
        raise SettingError("not agreed; nothing was spent.")


def main(arguments: Sequence[str] | None = None) -> None:
    try:
        run(parse_args(arguments))
    except SettingError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
