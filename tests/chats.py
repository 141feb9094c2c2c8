"""A conversation, and a tokenizer with a template."""

from foretell.checkpoints import load_tokenizer

CHATML = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TURNS = (
    {"role": "user", "content": "Add one to x."},
    {"role": "assistant", "content": "x += 1"},
    {"role": "user", "content": "And two?"},
    {"role": "assistant", "content": "x += 2"},
)


def tokenizer(template: str | None = CHATML):
    loaded = load_tokenizer("tiny")
    loaded.chat_template = template
    return loaded
