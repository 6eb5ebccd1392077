"""What the scripts of this folder share: the prompts of Qwen3-Reranker as its model card has them, and ports."""

import socket

PREFIX = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
YES, NO = 9693, 2152


def prompts(query, documents):
    return [f"{PREFIX}<Instruct>: {INSTRUCTION}\n<Query>: {query}\n<Document>: {d}{SUFFIX}" for d in documents]


def completion(model, prompts):
    """A request to vLLM's /v1/completions that computes the two logits of each prompt and nothing else."""
    return {"model": model, "prompt": prompts, "max_tokens": 1, "temperature": 0, "logprobs": 0,
            "logprob_token_ids": [YES, NO], "allowed_token_ids": [YES, NO]}  # fmt: skip


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
