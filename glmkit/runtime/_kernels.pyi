FORM: int

def supported() -> bool: ...
def pack(weight: int, scale: int, least: int, n: int, k: int, out: int, /) -> None: ...
def expand(packed: int, bits: int, n: int, k: int, out: int, /) -> None: ...
def multiply(
    x: int,
    y: int,
    packed: int,
    bits: int,
    m: int,
    n: int,
    k: int,
    threads: int,
    norm: int,
    eps: float,
    then: int,
    width: int,
    team: int,
    /,
) -> None: ...
def attend(
    qkv: int,
    turns: int,
    held: int,
    starts: int,
    out: int,
    rows: int,
    tokens: int,
    heads: int,
    shared: int,
    size: int,
    turned: int,
    room: int,
    threads: int,
    /,
) -> None: ...
def run(
    x: int,
    layers: int,
    held: int,
    turns: int,
    starts: int,
    count: int,
    hidden: int,
    inner: int,
    rows: int,
    tokens: int,
    heads: int,
    shared: int,
    size: int,
    turned: int,
    room: int,
    eps: float,
    threads: int,
    /,
) -> None: ...
def best(scores: int, rows: int, width: int, found: int, threads: int, /) -> None: ...
