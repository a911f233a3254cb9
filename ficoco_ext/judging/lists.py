"""The word lists of the judging rules."""

from __future__ import annotations

import re


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Deny what stands beside them, in languages as they are written; docs/how_answers_are_judged.md names the languages.
NEGATIONS = (
    _words(
        "not no non never neither nor none nothing nobody without cannot hardly barely scarcely instead rather except "
        "unlike lacks lack wrong incorrect false untrue absent unclear unsure unlikely improbable impossible excluded "
        "eliminated rejected worst least doubt doubts doubtful doubted besides excluding opposite refused refuses "
        "devoid stopped ceased wrongly mistakenly falsely fail fails failed deny denies denied zero 0 "
        "isnt arent wasnt werent aint dont doesnt didnt cant couldnt wont wouldnt shouldnt shant mustnt neednt mightnt "
        "hasnt havent hadnt"
    )
    | _words("nicht nichts kein keine keinen keinem keiner keines nie niemals nirgends weder ohne kaum nein")  # German
    | _words("niet geen nooit noch zonder inte ej icke ingen inga inget utan aldrig ikke intet uden uten aldri")
    | _words("pas ni aucun aucune sans jamais rien sin nunca ningún ninguna ninguno tampoco jamás nada")
    | _words("não nem nenhum nenhuma nenhuns nenhumas sem senza nessun nessuno nessuna né niente nu fără niciun nicio")
    | _words("нет не ни без никогда нельзя ні немає няма nie bez ani żaden żadna žádný není nejsou nije nisu")  # Slavic
    | _words("hay\u0131r nem nincs sem sincs ei eivät eikä ilman değil yok asla δεν δε μην μη όχι ούτε χωρίς ποτέ")
    | _words("ليس ليست ليسوا لست لا لم لن غير مش مو بدون بلا نیست نیستند نه هیچ نہیں לא אין אינו אינה אינם בלי")
    | _words("नहीं नही न मत ना बिना नाही না নেই নয় নয় নি இல்லை அல்ல కాదు లేదు ಅಲ್ಲ ಇಲ್ಲ അല്ല ഇല്ല ਨਹੀਂ નથી")
    | _words("không chẳng chưa tidak bukan tak tanpa hindi wala 안")
    | frozenset("不没沒非无無未别別勿否")
)
NEGATING = (  # inside of words, or leave open
    *("ない", "なく", "なかっ", "ません", "じゃね", "かもしれ"),
    *("可能", "也许", "也許", "或许"),
    *("아니", "아닌", "아닙", "아님", "아냐", "않", "없", "못", "모르", "모릅"),
    *("ไม่", "มิใช่", "มิได้", "ບໍ່", "မဟုတ်", "မရှိ", "មិន", "គ្មាន"),
)
# Deny as phrases.
DENYING = re.compile(
    r"\bfar from\b|\b(?:any|every)thing but\b|\ball but\b"
    r"|\b(?:other than|apart from|aside from|free of|used to be|less|almost|nearly|hard to|difficult to)\b"
    r"|\btoo \w+ to\b|\brul(?:e[sd]?|ing) \w* ?out\b"
)
# The answer says that it does not know, anywhere in the text.
IGNORANCE = re.compile(
    r"\b(?:not|cannot|never|dont|doesnt|cant|couldnt|unable to|impossible to|hard to|difficult to)"
    r"(?: (?:really|quite|yet|even|be|exactly|entirely|completely|fully|at all))*"
    r" (?:know|sure|certain|tell|determine|say|answer|think so|believe so|identify)\b"
    r"|\bno (?:idea|clue)\b|\b(?:unsure|uncertain|idk|dunno)\b"
)
# Leave open what is meant.
DOUBTS = _words("or either if whether could maybe perhaps possibly might thought oder ou или либо") | frozenset("或")
# Take back what was said, at the beginning of a later sentence.
CORRECTIONS = _words("no not wait actually sorry correction rather")
RETRACTIONS = _words("wait sorry correction actually joking kidding")  # wherever they stand later
REFUSALS = _words("incorrect wrong false untrue mistake mistaken doubt lie lying nonsense")  # in a sentence about it
ABOUT = _words(
    "that this it which i my answer thats its wrong incorrect false nonsense"
)  # what such a sentence begins with
PARTS = _words("partly partially somewhat")  # a yes of which only a part is meant
# All that may stand before a yes or no in its clause.
LEADING = _words(
    "the a an my your our his final correct right short simple best answer answers answered reply response statement "
    "claim sentence question asked to is are was be s it its this that here so therefore thus hence then i he she they "
    "we you would d ll will say says said choose pick select go with simply just definitely certainly absolutely "
    "clearly indeed ok okay well"
)
# All that may follow "B is" in its clause.
ENDORSING = _words(
    "the a my best correct right true answer answers choice option letter one final most likely accurate appropriate "
    "obviously clearly definitely certainly indeed here to this question"
)
# What a yes or no may follow, and what may follow it without a comma.
LEADS = _words("is are was be s say says said answer answers answered reply choose pick select would simply")
GOES_ON = _words("it there he she they this that these those i you we the in because indeed of sir")
# What an option letter may follow: one of these, with any of the next between; the last word after PICKS.
CHOICES = _words("answer ans option choice letter antwort opción opcion respuesta réponse ответ 案 选 選")
BETWEEN = _words("is s are the a option choice letter correct best right be should would most likely 是")
PICKS = _words("is s be choose pick select say guess with")
# What may stand before and after a word where no blanks do: copulas, measure words and particles.
_MEASURES = "只隻个個条條张張辆輛位台把匹座棵颗顆"
BEFORE = (*_MEASURES, *"是的了着著有为為叫和与與或在这那はがをにとでもへや", "คือ", "เป็น", "ว่า")
AFTER = (*"的了吗嗎呢吧啊和与與或在是はがをにとでもへやだよねか", "ค่ะ", "ครับ", "คะ")
# A number in such a script, what may follow it, and what makes another number of it.
FIGURES = frozenset("零〇一二两兩三四五六七八九十百千万萬亿億")
AFTER_FIGURES = (*AFTER, *_MEASURES, *"人年月日点點岁歳歲本枚匹頭頭つ")
PARTICLES = _words("입니다 이다 다 예요 이에요 이야 야 가 이 은 는 을 를 의 에 와 과 도 로 으로 이고 고 에서 만 이랑")
# Numbers as words, and what changes the value of a number before it.
_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
)
_TENS = "thirty forty fifty sixty seventy eighty ninety"
SPELLED = {word: value for value, word in enumerate(_SMALL.split())}
SPELLED |= {word: 10 * value for value, word in enumerate(_TENS.split(), 3)}
COMPARING = _words(  # a number directly after: "more than 5" is not 5
    "than least most under over below above almost nearly beyond about around approximately roughly circa approx log "
    "min within before after until till times by plus minimum maximum max"
)
BESIDE = _words("the a some only just about around roughly")  # may stand between
FOLLOWING = _words(  # a number directly before: "5 below"
    "less fewer more plus minus below above under over squared cubed per ish upwards odd something"
)
ALTERING = _words(  # a number in the same sentence
    "half halves double doubled twice thrice triple tripled third thirds quarter quarters squared cubed sqrt root "
    "factorial divided multiplied plus minimum maximum more less fewer another additional"
)
BOUNDING = re.compile(
    r"\bat (?:the )?(?:very )?(?:most|least|best|max|min)\b|\bup to\b|\b(?:max|tops)$|\bupwards of\b"
    r"|\band (?:up|change|counting|above|over|beyond)\b"
)
# After a number they change its value or make an ordinal of it.
RANKS = _words(
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth fifteenth "
    "sixteenth seventeenth eighteenth nineteenth twentieth thirtieth fortieth fiftieth sixtieth seventieth eightieth "
    "ninetieth hundredth thousandth millionth thirds quarter quarters fourths fifths sixths sevenths eighths ninths "
    "tenths elevenths twelfths twentieths hundredths thousandths millionths"
)
LARGE = _words(
    "hundred hundreds thousand thousands million millions billion billions trillion dozen dozens lakh "
    "lakhs crore crores score scores mil mio mrd bn gross pair pairs couple couples k half halves point"
) | frozenset("十百千万萬亿億半")
