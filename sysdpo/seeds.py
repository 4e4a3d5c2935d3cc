"""Where every random stream comes from: a function of the run's seed and of what the stream is for, nothing else."""


def stream(seed: int, *position: int) -> int:
    """The seed of one stream: of a row, a step, a draw of a row; further positions tell streams within it apart.

    Streams do not depend on how work is batched or shared between processes.
    """
    for place in position:
        seed = seed * 1_000_003 + place
    return seed % (2**63 - 1)
