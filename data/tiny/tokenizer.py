"""The tiny model's tokenizer and chat template: R1's special tokens, a byte-level vocabulary."""

import json
from collections.abc import Iterable
from pathlib import Path

BOS = "<｜begin▁of▁sentence｜>"  # id 0, as in R1
EOS = "<｜end▁of▁sentence｜>"  # id 1, as in R1
PAD = "<｜▁pad▁｜>"
MARKS = ("<｜User｜>", "<｜Assistant｜>", "<think>", "</think>")
VOCABULARY = 640

# A system message, then turns; earlier answers lose their reasoning; a new answer starts thinking.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}{{ message['content'] }}"
    "{%- elif message['role'] == 'user' -%}{{ '<｜User｜>' + message['content'] }}"
    "{%- else -%}{{ '<｜Assistant｜>' + message['content'].split('</think>')[-1] + eos_token }}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<｜Assistant｜><think>\\n' }}{%- endif -%}"
)


def write_tokenizer(directory: Path, texts: Iterable[str]) -> None:
    """Train a tokenizer on `texts` and write tokenizer.json and tokenizer_config.json.

    Every digit is its own token, which makes arithmetic easier; any text can be encoded.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(text, special=True) for text in (BOS, EOS, PAD)]
        + [AddedToken(text, special=False, normalized=False) for text in MARKS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "model_max_length": 4096,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (directory / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
