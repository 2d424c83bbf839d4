"""Writes a GGUF file as a folder that transformers serves."""

import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

file, folder = Path(sys.argv[1]), sys.argv[2]
for kind in (AutoModelForCausalLM, AutoTokenizer):
    kind.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
