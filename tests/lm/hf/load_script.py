"""Loads an exported folder as one does who has only torch and transformers: `load_script.py FOLDER EXPECTED`.

EXPECTED holds `tokens` [1, T], their `logits` and the `text` that greedy decoding gave where the folder was written.
"""

import sys
from importlib.machinery import PathFinder

MISSING = {"lm", "kernels", "eval", "pydantic", "sentencepiece", "deepspeed"}


class OtherPackages(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in MISSING else super().find_spec(name, path, target)


def main(folder: str, expected: str) -> None:
    sys.meta_path[:] = [OtherPackages if finder is PathFinder else finder for finder in sys.meta_path]
    import torch
    from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, pipeline

    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    wanted = torch.load(expected)
    with torch.no_grad():
        torch.testing.assert_close(model(wanted["tokens"]).logits, wanted["logits"], rtol=0, atol=1e-6)
        backbone = AutoModel.from_pretrained(folder, trust_remote_code=True)
        hidden = backbone(wanted["tokens"]).last_hidden_state
        torch.testing.assert_close(model.lm_head(hidden), wanted["logits"], rtol=0, atol=1e-6)

    batch = tokenizer(["def", "import this"], return_tensors="pt", padding=True)
    greedy = model.generate(**batch, max_new_tokens=8, do_sample=False)
    assert tokenizer.batch_decode(greedy, skip_special_tokens=True) == wanted["text"]
    torch.manual_seed(0)
    assert model.generate(**batch, max_new_tokens=8, do_sample=True, num_return_sequences=2).shape[0] == 4
    beams = {"max_new_tokens": 8, "num_beams": 3, "do_sample": False}
    assert torch.equal(model.generate(**batch, **beams), model.generate(**batch, **beams, use_cache=False))
    generator = pipeline("text-generation", model=folder, tokenizer=tokenizer, trust_remote_code=True)
    (answer,) = generator("def", max_new_tokens=8, do_sample=False)
    assert answer["generated_text"] == wanted["text"][0]

    model.save_pretrained(folder + "-again")
    again = AutoModelForCausalLM.from_pretrained(folder + "-again", trust_remote_code=True)
    assert torch.equal(again(wanted["tokens"]).logits, model(wanted["tokens"]).logits)
    assert not MISSING & {name.partition(".")[0] for name in sys.modules}


if __name__ == "__main__":
    main(*sys.argv[1:])
