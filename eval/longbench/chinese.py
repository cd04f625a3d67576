"""LongBench's scores of Chinese answers: those of English ones on words as the package jieba cuts them."""

from __future__ import annotations

import string
from collections.abc import Sequence

from eval.scorers import rouge_l, token_f1
from lm.errors import UserError

PUNCTUATION = string.punctuation + (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."  # noqa: RUF001
)
_WITHOUT_PUNCTUATION = str.maketrans("", "", PUNCTUATION)


def cut(text: str) -> list[str]:
    """The words of a text. Raises UserError where jieba is not installed."""
    try:
        import jieba
    except ImportError:
        raise UserError(
            "LongBench's Chinese answers are cut into words by the package jieba: pip install jieba"
        ) from None
    return list(jieba.cut(text, cut_all=False))


def words(text: str) -> list[str]:
    """The words in small letters, without punctuation and white space."""
    bare = ("".join(word.lower().translate(_WITHOUT_PUNCTUATION).split()) for word in cut(text))
    return [word for word in bare if word]


def f1_zh(prediction: str, answers: Sequence[str]) -> float:
    """F1 of the words that prediction and answer share."""
    return max(token_f1(words(prediction), words(answer)) for answer in answers)


def rouge_l_zh(prediction: str, answers: Sequence[str]) -> float:
    """ROUGE-L F of the words, punctuation among them."""
    return rouge_l(" ".join(cut(prediction)), [" ".join(cut(answer)) for answer in answers])
