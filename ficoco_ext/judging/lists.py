"""The words that the rules of judging know."""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Deny what stands beside them.
NEGATIONS = _words(
    "not no non never neither nor none nothing without cannot isnt arent wasnt dont doesnt didnt cant hardly instead "
    "rather except unlike lacks wrong incorrect absent unclear unsure "
    "nicht kein keine nie pas ni aucun aucune sans sin nunca senza нет не ни без नहीं ليس لا غير לא אין"
) | frozenset("不没沒非无無未")
NEGATING = ("ない", "ません", "아니", "않", "없", "ไม่")  # inside of words
# Leave open what is meant.
DOUBTS = _words("or either if whether maybe perhaps possibly might thought oder ou или либо") | frozenset("或")
# Take back what was said, at the beginning of a later sentence.
CORRECTIONS = _words("no not wait actually sorry correction rather")
# What a yes or no may stand behind, and what may follow it without a comma.
LEADS = _words("is are was be s say says said answer answers answered reply choose pick select would simply")
GOES_ON = _words("it there he she they this that these those i you we the in because indeed of sir")
# What an option letter may stand behind: one of these, with any of the next between; the last word behind PICKS.
CHOICES = _words("answer ans option choice letter antwort opción opcion respuesta réponse ответ 案 选 選")
BETWEEN = _words("is s are the a option choice letter correct best right be should would most likely 是")
PICKS = _words("is s be choose pick select say guess with")
# What may stand before and behind a word where no blanks do: copulas, measure words and particles.
_MEASURES = "只隻个個条條张張辆輛位台把匹座棵颗顆"
BEFORE = (*_MEASURES, *"是的了着著有为為叫和与與或在这那はがをにとでもへや", "คือ", "เป็น", "ว่า")
BEHIND = (*"的了吗嗎呢吧啊和与與或在是はがをにとでもへやだよねか", "ค่ะ", "ครับ", "คะ")
# A number in such a script, what may follow it, and what makes another number of it.
FIGURES = frozenset("零〇一二两兩三四五六七八九十百千万萬亿億")
BEHIND_FIGURES = (*BEHIND, *_MEASURES, *"人年月日点點岁歳歲本枚匹頭頭つ")
PARTICLES = _words("입니다 이다 다 예요 이에요 이야 야 가 이 은 는 을 를 의 에 와 과 도 로 으로 이고 고 에서 만 이랑")
# Numbers as words, and what changes the value of a number that it stands behind.
_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
)
_TENS = "thirty forty fifty sixty seventy eighty ninety"
SPELLED = {word: place for place, word in enumerate(_SMALL.split())}
SPELLED |= {word: 10 * place for place, word in enumerate(_TENS.split(), 3)}
COMPARING = _words("than least most under over below above almost nearly beyond")  # "more than 5" is not 5
LARGE = _words(
    "hundred hundreds thousand thousands million millions billion billions trillion dozen dozens k half halves point"
) | frozenset("十百千万萬亿億半")
