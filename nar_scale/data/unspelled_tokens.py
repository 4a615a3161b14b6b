"""A tokenizer whose special tokens no text spells out.

The package `tokenizers` can treat their names as plain text, but a model that has them as pieces of its vocabulary, as
those of T5 and XLM-R do, still finds them there. Under names that no text holds they keep their ids.
"""

import json
from collections.abc import Collection

UNSPELLED = "\uffff{name}\uffff"  # U+FFFF is no character


def unspelled(description: str, names: Collection[str]) -> str:
    """Return the description of a tokenizer that gives the same ids, but those of some tokens to no text.

    Args:
        description: the content of a `tokenizer.json` file.
        names: of the tokens.
    """
    content = json.loads(description)
    renamed = {name: UNSPELLED.format(name=name) for name in names}
    for token in content["added_tokens"]:
        token["content"] = renamed.get(token["content"], token["content"])
    model = content["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {renamed.get(name, name): number for name, number in model["vocab"].items()}
    else:
        model["vocab"] = [(renamed.get(name, name), score) for name, score in model["vocab"]]
    if model.get("unk_token") in renamed:
        model["unk_token"] = renamed[model["unk_token"]]
    if "merges" in model:
        model["merges"] = [merge for merge in model["merges"] if _merged(merge) not in renamed]
    content["post_processor"] = None  # which may name them, and is not used for documents
    return json.dumps(content)


def _merged(merge: str | list[str]) -> str:
    return merge.replace(" ", "", 1) if isinstance(merge, str) else "".join(merge)
