"""Prompts that must never change, and that transformers renders alike."""

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from jaxserver.adapters.prompts import ChatTemplateFormatter
from jaxserver.ports.types import Message
from tests.golden import chat_templates

USER = Message(role="user", content="Hi <b>\u00fc</b>\n")
TALK = [USER, Message(role="assistant", content="Yes?"), USER]
SYSTEM_TALK = [Message(role="system", content=" Be brief."), *TALK]

PROMPTS = {
    ("chatml", "talk"): (
        "<|im_start|>system\nBe kind.<|im_end|>\n"
        "<|im_start|>user\nHi <b>\u00fc</b>\n<|im_end|>\n"
        "<|im_start|>assistant\nYes?<|im_end|>\n"
        "<|im_start|>user\nHi <b>\u00fc</b>\n<|im_end|>\n"
        "<|im_start|>assistant\n"
    ),
    ("llama3", "system"): (
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi <b>\u00fc</b><|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nYes?<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi <b>\u00fc</b><|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    ("mistral", "system"): (
        "<s>[INST]  Be brief.\n\nHi <b>\u00fc</b>\n [/INST] Yes?</s>"
        "[INST] Hi <b>\u00fc</b>\n [/INST]"
    ),
    ("gemma", "talk"): (
        "<s><start_of_turn>user\nHi <b>\u00fc</b><end_of_turn>\n"
        "<start_of_turn>model\nYes?<end_of_turn>\n"
        "<start_of_turn>user\nHi <b>\u00fc</b><end_of_turn>\n"
        "<start_of_turn>model\n"
    ),
    ("tools", "talk"): (
        '{"role": "user", "text": "Hi <b>\u00fc</b>\\n"}\n'
        '{"role": "assistant", "text": "Yes?"}\n'
        '{"role": "user", "text": "Hi <b>\u00fc</b>\\n"}\n'
        '[\n "Hi <b>\u00fc</b>\\n",\n "Yes?",\n "Hi <b>\u00fc</b>\\n"\n]\n'
        "none no padding"
    ),
}
TALKS = {"talk": TALK, "system": SYSTEM_TALK}


def rendered_by_transformers(template: str, talk: list[Message]) -> str:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE()),
        bos_token="<s>",
        eos_token="</s>",
        chat_template=template,
    )
    messages = [{"role": turn.role, "content": turn.content} for turn in talk]
    prompt: str = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    return prompt


@pytest.mark.parametrize(("name", "talk"), PROMPTS)
def test_a_template_is_rendered_as_it_always_was(name: str, talk: str) -> None:
    template = chat_templates.ALL[name]
    formatter = ChatTemplateFormatter(
        template=template, bos_token="<s>", eos_token="</s>"
    )
    prompt = formatter.format(TALKS[talk])
    assert prompt == PROMPTS[name, talk]
    assert prompt == rendered_by_transformers(template, TALKS[talk])
