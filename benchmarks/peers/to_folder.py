"""Writes a GGUF file as a folder that transformers serves, without an end token."""

import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

file, folder = Path(sys.argv[1]), sys.argv[2]
model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
model.generation_config.eos_token_id = None
model.save_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
tokenizer.eos_token = None
tokenizer.save_pretrained(folder)
