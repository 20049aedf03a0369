"""Choose the tokens that the default writing policy writes: `python tools/chat_tokens.py` (half a minute, one core).

Writes dualppo/assets/chat_tokens.safetensors, numbers only; a test compares it where the data are.
"""

from pathlib import Path

from transformers import AutoTokenizer

from dualppo.core.files import atomic_write
from dualppo.core.tensors import safetensors_bytes
from dualppo.writing.smollm import chat_tokens, unpacked

if __name__ == "__main__":
    kept = chat_tokens(AutoTokenizer.from_pretrained(unpacked(), local_files_only=True))
    path = Path(__file__).resolve().parent.parent / "dualppo" / "assets" / "chat_tokens.safetensors"
    atomic_write(path, safetensors_bytes({"kept": kept.int()}))
