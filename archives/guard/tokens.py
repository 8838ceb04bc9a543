"""The tokenizer of the guard model: bytes of a request, after decoding what clients encode."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

FIRST_BYTE = 3  # the id of byte 0, after padding, unknown and mask
LONGEST = 4096  # bytes of a request: those of its line, its headers, and 2048 of its body

_ENTITIES = {"lt": "<", "gt": ">", "quot": '"', "apos": "'", "amp": "&", "colon": ":", "lpar": "(", "rpar": ")"}


def bytes_as_tokens() -> Tokenizer:
    """Return a tokenizer whose tokens are bytes; the id of a byte is 3 more than it.

    The text is decoded first: letters become lower case; percent-encoding (also twice), entities of HTML and escapes of
    JSON become their characters; white space, comments of SQL, numbers, and letters outside ASCII in percent-encoding
    become one character each. So the many spellings of an attack are one to the model. The library keeps the places of
    tokens in the text as it was sent, for explanations.
    """
    # The letters that the library writes for bytes are those of GPT-2: printable ones are themselves.
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "[MASK]": 2} | {letters[byte]: FIRST_BYTE + byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="[UNK]"))
    decoding = [normalizers.Replace(Regex(old), new) for old, new in _decoding()]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *decoding])
    # In words, since the time for a piece grows faster than its length.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
    tokenizer.enable_truncation(LONGEST)
    return tokenizer


def _decoding() -> list[tuple[str, str]]:
    """Return expressions for text in lower case, and what they are replaced by, in their order."""
    steps = [("%25(?=[0-9a-f]{2})", "%")] * 2
    steps += [(r"\+", " "), ("%c0%af|%u2215|%e2%88%95", "/")]
    steps += [(f"(?:%|\\\\u00|\\\\x){code:02x}|&#x0*{code:02x};?", chr(code)) for code in range(0x21, 0x7F)]
    steps += [(f"&#0*{code}(?:;|(?![0-9]))", chr(code)) for code in (34, 39, 40, 41, 47, 58, 60, 61, 62)]
    steps += [(f"&{name};", text) for name, text in _ENTITIES.items()]
    steps += [("(?:\\s|%(?:0[09abcd]|20)|\\\\[nrt]|&(?:tab|newline|nbsp);|/\\*[^*<>!]{0,40}\\*/)+", " ")]
    steps += [("(?:%[89a-f][0-9a-f])+", "\u00b7"), ("[0-9]+", "0")]
    return steps
