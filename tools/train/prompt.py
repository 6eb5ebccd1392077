"""The canonical prompt of Qwen3-Reranker (the model card's text, as in src/text/prompt.c), in the parts that training packs."""

INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
PREFIX = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


def head(instruction, query):
    """Everything before the document; one query's documents share it."""
    return f"{PREFIX}<Instruct>: {instruction or INSTRUCTION}\n<Query>: {query}\n<Document>: "


def text(instruction, query, document):
    return head(instruction, query) + document + SUFFIX
