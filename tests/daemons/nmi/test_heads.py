"""What is remembered of request heads, and how two heads may differ and still mean the same.

What heads mean, over real sockets: test_hostile.py and test_conformance.py; that no memory lets one request answer
another: tests/fuzz.
"""

import pytest

from podidentity.core.tokens.imds import Refusal, Rules, TokenRequest
from podidentity.nmi.heads import Heads, Memory, deciding_lines, without_request_id

LINE = b"GET /metadata/identity/oauth2/token?resource=r HTTP/1.1"
PLAIN = (b"Host: 169.254.169.254", b"Metadata: true")
ID = b"x-ms-client-request-id: "


def head(*headers: bytes, line: bytes = LINE) -> bytes:
    """Build a head."""
    return b"\r\n".join((line, *headers, b"", b""))


def refusal(heads: Heads, text: bytes) -> int:
    """Return the status with which a head is refused, or 0 if it is accepted."""
    request = heads.understand(text).request
    return request.status if isinstance(request, Refusal) else 0


@pytest.mark.parametrize("number", [b"", b"-"])
def test_a_request_id_that_is_none_is_not_left_out(number: bytes) -> None:
    """An ID that is empty, too long or oddly written is not left out, nor is one whose header is in another case."""
    for text in (number, b"a" * 65, b"a b", b"a;b", b"a\tb", b"\xc3\xa9"):
        assert without_request_id(head(*PLAIN, ID + text)) is None
    assert without_request_id(head(*PLAIN)) is None
    assert without_request_id(head(*PLAIN, b"X-MS-Client-Request-ID: 1")) is None
    assert without_request_id(head(*PLAIN, ID + b"1").removesuffix(b"\r\n\r\n")) is None


@pytest.mark.parametrize("number", [b"1", b"a" * 64, b"5f1b7b4c-0000-4000-8000-0123456789ab"])
def test_a_request_id_is_left_out_and_nothing_else(number: bytes) -> None:
    """Each request of an SDK has its own ID; without the ID the heads of all its requests are the same."""
    assert without_request_id(head(PLAIN[0], ID + number, PLAIN[1])) == head(PLAIN[0], ID, PLAIN[1])
    assert without_request_id(head(*PLAIN, ID + number)) == head(*PLAIN, ID)


def test_lines_that_decide_nothing_are_left_out() -> None:
    """Headers that decide nothing are left out; those that decide stay byte by byte, in their order and case."""
    deciding = (b"HOST: a", b"Metadata:true ", b"X-Forwarded-For: b", b"Connection: close", b"Upgrade: h2c")
    noise = (b"User-Agent: sdk", b"Accept: */*", b"X-Metadata: true", b"Metadata-X: false")
    mixed = [line for pair in zip(deciding, noise, strict=False) for line in pair] + [deciding[-1]]
    assert deciding_lines(head(*mixed)) == b"\r\n".join((LINE, *deciding))
    assert deciding_lines(head(*reversed(mixed))) == b"\r\n".join((LINE, *reversed(deciding)))


@pytest.mark.parametrize(
    "text",
    [
        head(*PLAIN, line=LINE.replace(b"GET", b"POST")),
        head(*PLAIN, line=LINE.replace(b"1.1", b"2.0")),
        head(*PLAIN, b" folded"),
        head(*PLAIN, b"A : b"),
        head(*PLAIN, b"A"),
        head(*PLAIN, b"A: \x00"),
        head(*PLAIN, b"A: \xe9"),
        head(*PLAIN) + b"X",
        head(*PLAIN).replace(b"\r\n", b"\n"),
        head(*PLAIN, *(b"A: b",) * (63)),
        head(*PLAIN, b"A: " + b"b" * 2048),
    ],
)
def test_a_head_on_which_parsers_may_differ_is_remembered_by_all_its_bytes_alone(text: bytes) -> None:
    """Nothing is left out of a head that is malformed, very long or no plain GET: only the same bytes recall it."""
    assert deciding_lines(text) is None


def test_as_many_lines_as_a_head_may_have_are_plain() -> None:
    """A head of 64 headers, or of 2 KiB, is still plain: what decides nothing is left out of it."""
    assert deciding_lines(head(*PLAIN, *(b"A: b",) * (62))) == head(*PLAIN).removesuffix(b"\r\n\r\n")
    start = head(*PLAIN, b"A: ").removesuffix(b"\r\n\r\n")
    longest = start + b"b" * (2048 - len(start) - 4) + b"\r\n\r\n"
    assert (len(longest), deciding_lines(longest)) == (2048, head(*PLAIN).removesuffix(b"\r\n\r\n"))


def test_the_limit_of_headers_is_told() -> None:
    """A head of 64 headers is accepted and one of 65 gets 431, whether or not names are repeated."""
    heads = Heads(Rules())
    for fill in ([b"A: b"] * (62), [b"A%d: b" % number for number in range(62)]):
        assert refusal(heads, head(*PLAIN, *fill)) == 0
        assert refusal(heads, head(*PLAIN, *fill, b"One: more")) == 431


def test_what_means_the_same_is_understood_once() -> None:
    """One meaning is recalled for heads that differ only in request ID or headers that decide nothing."""
    heads = Heads(Rules())
    first = head(*PLAIN, ID + b"1", b"User-Agent: a")
    assert heads.recall(first) is None
    meaning = heads.understand(first)
    assert meaning.request == TokenRequest("r")
    others = ((ID + b"2", b"User-Agent: a"), (b"User-Agent: b",), (ID + b"3",), ())
    for text in (first, *(head(*PLAIN, *lines) for lines in others)):
        assert heads.recall(text) is meaning
    resource = LINE.replace(b"=r", b"=s")
    for text in (head(*PLAIN, line=resource), head(PLAIN[0]), head(*PLAIN, b"Connection: close")):
        assert heads.recall(text) is None


def forget(heads: Heads, count: int) -> None:
    """Have `heads` understand so many other heads, none of which has a request ID."""
    for number in range(count):
        heads.understand(head(*PLAIN, line=LINE.replace(b"=r", b"=%d" % number)))


def test_a_head_with_a_request_id_is_remembered_when_its_deciding_lines_are_forgotten() -> None:
    """Heads without their request ID have a memory of their own, which heads without one do not fill.

    A head that was recognized by its deciding lines is in that memory as well.
    """
    heads = Heads(Rules())
    meaning = heads.understand(head(*PLAIN, ID + b"1"))
    assert heads.recall(head(*PLAIN, ID + b"1", b"User-Agent: a")) is meaning
    forget(heads, 1100)  # more than two generations of 512
    assert heads.recall(head(*PLAIN)) is None
    assert heads.recall(head(*PLAIN, ID + b"2")) is meaning
    assert heads.recall(head(*PLAIN, ID + b"2", b"User-Agent: a")) is meaning


def test_a_head_of_the_older_generation_is_remembered() -> None:
    """A head that is not plain is remembered by all its bytes, also when 512 others came since."""
    heads = Heads(Rules())
    text = head(*PLAIN, b"A: \xe9")
    meaning = heads.understand(text)
    forget(heads, 600)
    assert heads.recall(text) is meaning


def test_headers_are_told_apart_by_their_names() -> None:
    """A value that is a header's name means nothing, and a harmless header may be repeated."""
    heads = Heads(Rules())
    assert refusal(heads, head(*PLAIN, b"X-Forwarded-For: host")) == 400
    assert refusal(heads, head(*PLAIN, *(b"A: b",) * 8)) == 0


def test_a_long_head_is_understood_anew_each_time() -> None:
    """Heads of up to 2 KiB are remembered; longer ones are not, so that a flood of them takes no memory."""
    heads = Heads(Rules())
    start = len(head(*PLAIN, b"A: \xe9"))
    for length, remembered in ((2048, True), (2049, False)):
        text = head(*PLAIN, b"A: \xe9" + b"b" * (length - start))
        assert len(text) == length
        meaning = heads.understand(text)
        assert (heads.recall(text) is meaning) == remembered


def test_how_an_answer_must_be_sent() -> None:
    """Only HTTP/1.1 keeps its connection open; an answer to HEAD has no content; HTTP/1.0 gets no interim answer."""
    heads = Heads(Rules())
    plain = heads.understand(head(*PLAIN))
    assert (plain.keep_open, plain.without_content, plain.interim) == (True, False, True)
    assert not heads.understand(head(*PLAIN, b"Connection: close")).keep_open
    old = heads.understand(head(*PLAIN, b"Connection: keep-alive", line=LINE.replace(b"1.1", b"1.0")))
    assert (old.keep_open, old.interim, old.request) == (False, False, TokenRequest("r"))
    assert heads.understand(head(*PLAIN, line=LINE.replace(b"GET", b"HEAD"))).without_content
    broken = heads.understand(b"\r\n\r\n")
    assert (broken.keep_open, broken.interim) == (False, False)
    assert not heads.understand(head(*PLAIN, *(b"A: b",) * 63)).keep_open


def test_a_memory_forgets_what_was_not_used_for_longest() -> None:
    """A memory drops the entries that were not used for longest, and holds twice its limit at most."""
    memory: Memory[int, str] = Memory(3)
    for number in range(3):
        memory.remember(number, str(number))
    assert len(memory) == 3
    memory.remember(3, "3")
    assert len(memory) == 4
    assert memory.recall(0) == "0"  # used just now: it is kept with the younger ones
    for number in (4, 5):
        memory.remember(number, str(number))
    assert [memory.recall(number) for number in (1, 2)] == [None, None]
    assert [memory.recall(number) for number in (0, 3, 4, 5)] == ["0", "3", "4", "5"]
    for number in range(100):
        memory.remember(number, str(number))
        assert len(memory) <= 6
    assert memory.recall(99) == "99"
    assert memory.recall(-1) is None
