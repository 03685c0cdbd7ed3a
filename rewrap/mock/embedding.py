"""The mock's embeddings: unit vectors from the words and the letters of a text. Imports leaf files alone.

The same text has the same vector on every machine, and texts that share words or parts of words are
near to each other. No meaning is known: "car" and "automobile" are far apart.

Each feature of a text (a word, or three letters of one) adds 1 or -1 at one place in each octave of
the vector: 0 to 7, 8 to 15, 16 to 31, and so on. So the first `dimensions` numbers alone still tell
texts apart, and only the octaves that are asked for are computed.
"""

import asyncio
import math
from collections import Counter
from hashlib import blake2b
from struct import Struct

from rewrap.regex import regex

DEFAULT_DIMENSIONS = 1536
FIRST_OCTAVE = 8
WORD_WEIGHT = 2.0  # beside 1.0 for three letters
WORD = regex(r"\w+")
HASH_BYTES = 28  # 16 bits for each octave: 65,536 dimensions at most
SIGN = 0x8000  # one of 16 bits; the others choose the place


def embed(value: str | list[int], dimensions: int = 0) -> list[float]:
    """The vector of a text or of token ids, of length 1. 0 dimensions: the default.

    Fewer dimensions give the beginning of the default vector, at length 1 again. 2 µs per feature:
    8,000 tokens of prose take 10 ms, as many random letters 50 ms.
    """
    size = dimensions or DEFAULT_DIMENSIONS
    octaves = octaves_of(size)
    places = Struct(f"<{len(octaves)}H")
    sums = [0.0] * (octaves[-1][0] + octaves[-1][1] + 1)
    for feature, weight in features(value).items():
        digest = blake2b(feature.encode(errors="replace"), digest_size=HASH_BYTES).digest()
        for (start, mask), bits in zip(octaves, places.unpack_from(digest), strict=True):
            sums[start + (bits & mask)] += weight if bits & SIGN else -weight
    for start, mask in octaves:  # in a wide octave, fewer features meet by chance
        scale = math.sqrt(mask + 1)
        sums[start : start + mask + 1] = [
            number and number * scale for number in sums[start : start + mask + 1]
        ]
    return unit_vector(sums[:size])


async def embed_all(
    model: str, inputs: list[str | list[int]], dimensions: int
) -> tuple[list[list[float]], None]:
    """The vectors of all inputs, made in a thread: large ones take seconds. Tokens are not counted."""
    return await asyncio.to_thread(lambda: [embed(value, dimensions) for value in inputs]), None


def octaves_of(size: int) -> list[tuple[int, int]]:
    """The octaves of a vector: first position, and the mask of the bits that choose a place."""
    octaves = [(0, FIRST_OCTAVE - 1)]
    end = FIRST_OCTAVE
    while end < size:
        octaves.append((end, end - 1))
        end *= 2
    return octaves


def unit_vector(numbers: list[float]) -> list[float]:
    length = math.sqrt(sum([number * number for number in numbers]))
    if not length:  # the features cancel each other
        return [1.0, *numbers[1:]]
    return [number and round(number / length, 9) for number in numbers]  # most are 0


def features(value: str | list[int]) -> dict[str, float]:
    """The features of a text and their weights. Repetition counts less and less."""
    if isinstance(value, str):
        words = Counter(WORD.findall(value.casefold()))
    else:
        words = Counter(map(str, value))
    weights: dict[str, float] = {}
    for word, count in words.items():
        weight = 1.0 + math.log(count)
        weights[word] = WORD_WEIGHT * weight
        marked = f"<{word}>"
        for start in range(len(marked) - 2):
            letters = f"#{marked[start : start + 3]}"
            weights[letters] = weights.get(letters, 0.0) + weight
    if not weights:  # punctuation, emoji
        return {character: 1.0 for character in value if isinstance(character, str)}
    return weights
