"""Texts and queries meet in any Unicode form and in many scripts; the shown text is untouched."""

import unicodedata
from pathlib import Path

import pytest

from flashback.corpus.documents import CorpusReport
from flashback.corpus.passages import Passage
from flashback.errors import SettingsError
from flashback.retrieval.analysis import LANGUAGES, terms, without_stems
from flashback.retrieval.bm25 import BM25Index, IndexSettings, build_index
from flashback.settings import SearchOptions

MEET = {
    "composed and decomposed": ("Hà Nội", unicodedata.normalize("NFD", "Hà Nội")),
    "composed and decomposed Hangul": ("한국어", unicodedata.normalize("NFD", "한국어")),
    "composed and decomposed kana": ("ガイドブック", unicodedata.normalize("NFD", "ガイドブック")),
    "order of marks": ("o\u0323\u0302ng", "o\u0302\u0323ng"),
    "full width": ("API2024", "ＡＰＩ２０２４"),
    "half-width kana": ("カメラ", "ｶﾒﾗ"),
    "ligatures": ("official", "oﬃcial"),
    "sharp s": ("Straße", "STRASSE"),
    "final sigma": ("ΟΔΟΣ", "οδος"),
    "dotted capital I": ("İstanbul", "istanbul"),
    "superscript": ("m²", "m2"),
    "Roman numeral": ("Ⅳ", "iv"),
    "Kelvin sign": ("\u212a", "k"),
    "soft hyphen": ("Wörter\u00adbuch", "wörterbuch"),
    "zero-width non-joiner": ("می\u200cخواهم", "میخواهم"),
    "direction mark": ("\u200fשלום", "שלום"),
    "Arabic vowels": ("كِتَاب", "كتاب"),
    "Arabic kashida": ("كتـــاب", "كتاب"),
    "ligature of Arabic": ("ﻻ", "لا"),
}


@pytest.mark.parametrize("name", MEET)
def test_forms_of_one_word_meet_and_the_text_is_shown_as_it_was(name: str, tmp_path: Path) -> None:
    for text, query in (MEET[name], MEET[name][::-1]):
        folder = tmp_path / ("a" if text == MEET[name][0] else "b")
        passages = [Passage("1#0", "1", "", f"x {text} y"), Passage("2#0", "2", "", "another")]
        build_index(folder, passages, IndexSettings(), CorpusReport())
        ((hit,),) = BM25Index.open(folder).search([query], SearchOptions(k=2))
        assert hit.text == f"x {text} y"


LONG = {
    "Malayalam": "പരിസ്ഥിതിസംരക്ഷണപ്രവർത്തനങ്ങളെക്കുറിച്ചുള്ള",
    "Tamil": "கேட்டுக்கொண்டிருந்தவர்களுக்காகத்தான்",
    "Georgian": "გადმოგვეკონტრრევოლუციონერებინათ",
    "German": "Rindfleischetikettierungsüberwachungsaufgabenübertragungsgesetzesentwurf",
    "a name in code": "_".join(["very"] * 3) + "x" * 70,
}


@pytest.mark.parametrize("name", LONG)
def test_long_words_are_found(name: str, tmp_path: Path) -> None:
    word = LONG[name]
    assert len(word.encode()) > 64
    texts = (f"a {word} b", "a b")
    passages = [Passage(f"{n}#0", str(n), "", text) for n, text in enumerate(texts)]
    build_index(tmp_path / "IDX", passages, IndexSettings(), CorpusReport())
    ((hit,),) = BM25Index.open(tmp_path / "IDX").search([word], SearchOptions(k=2))
    assert hit.text == texts[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hà Nội", "hà nội"),
        (unicodedata.normalize("NFD", "Hà Nội"), "hà nội"),
        ("Don't os.path_join C++ 3.14", "don t os path join c 3 14"),
        ("हिन्दी में", "हिन्दी में"),
        ("中文", "中 文 中文"),
        ("一a二三b", "一 a 二 三 二三 b"),
        ("กำลัง", "กํ า ลั ง กํา าลั ลัง"),
        ("  \n🙂 () ", ""),
        ("naïve_name", "naïve name"),
    ],
)
def test_words_are_letters_with_their_marks(text: str, expected: str) -> None:
    assert terms(text) == expected


def test_a_query_looks_for_single_characters_only_where_they_stand_alone() -> None:
    assert terms("中文字", query=True) == "中文 文字"
    assert terms("中, 文 a", query=True) == "中 文 a"


KNOWN = {
    "English": (
        "The lighthouse keeper repaired the lamp before the storm.",
        "The bakery sells rye bread on Fridays.",
        "A railway bridge crosses the valley.",
        ("who was repairing lighthouse lamps", "bread bakeries", "bridges over valleys"),
    ),
    "Chinese": (
        "灯塔看守人在暴风雨之前修好了灯。",
        "面包店每逢星期五出售黑麦面包。",
        "一座铁路桥横跨山谷。",
        ("谁修好了灯塔的灯?", "哪里出售黑麦面包", "铁路桥"),
    ),
    "Japanese": (
        "灯台守は嵐の前にランプを修理した。",
        "パン屋は金曜日にライ麦パンを売っている。",
        "鉄道の橋が谷を渡っている。",
        ("ランプを修理したのは誰ですか", "ライ麦パン", "谷を渡る橋"),
    ),
    "Korean": (
        "등대지기는 폭풍이 오기 전에 등불을 고쳤다.",
        "빵집에서는 금요일마다 호밀빵을 판다.",
        "철교가 골짜기를 가로지른다.",
        ("등불은 누가 고쳤나", "호밀빵이 있는 빵집", "골짜기의 철교"),
    ),
    "Thai": (
        "คนเฝ้าประภาคารซ่อมตะเกียงก่อนเกิดพายุ",
        "ร้านขนมปังขายขนมปังข้าวไรย์ทุกวันศุกร์",
        "สะพานรถไฟข้ามหุบเขา",
        ("ใครซ่อมตะเกียงของประภาคาร", "ขนมปังข้าวไรย์", "สะพานข้ามหุบเขาอยู่ที่ไหน"),
    ),
    "Arabic": (
        "أصلح حارس المنارة المصباح قبل العاصفة.",
        "يبيع المخبز خبز الجاودار يوم الجمعة.",
        "يعبر جسر السكة الحديدية الوادي.",
        ("من أصلح مصباح منارة", "خبز الجاودار", "جسر فوق وادي"),
    ),
    "Russian": (
        "Смотритель маяка починил лампу перед бурей.",
        "Булочная продаёт ржаной хлеб по пятницам.",
        "Железнодорожный мост пересекает долину.",
        ("кто починил лампы маяков", "ржаного хлеба", "мосты через долины"),
    ),
    "Greek": (
        "Ο φαροφύλακας επισκεύασε τη λάμπα πριν από την καταιγίδα.",
        "Ο φούρνος πουλάει ψωμί σίκαλης κάθε Παρασκευή.",
        "Μια σιδηροδρομική γέφυρα διασχίζει την κοιλάδα.",
        ("λάμπες του φαροφύλακα", "ψωμιά σίκαλης", "γέφυρες στις κοιλάδες"),
    ),
    "Vietnamese": (
        "Người gác hải đăng đã sửa ngọn đèn trước cơn bão.",
        "Tiệm bánh bán bánh mì lúa mạch đen vào thứ sáu.",
        "Một cây cầu đường sắt bắc qua thung lũng.",
        ("ai sửa ngọn đèn hải đăng", "bánh mì lúa mạch", "cầu đường sắt"),
    ),
    "German": (
        "Der Leuchtturmwärter reparierte die Lampe vor dem Sturm.",
        "Die Bäckerei verkauft freitags Roggenbrot.",
        "Eine Eisenbahnbrücke überquert das Tal.",
        ("wer reparierte die Lampe", "ROGGENBROT", "Eisenbahnbrücke im Tal"),
    ),
    "Turkish": (
        "Deniz feneri bekçisi İzmir'de lambayı onardı.",
        "Fırın cuma günleri çavdar ekmeği satar.",
        "Bir demiryolu köprüsü vadiyi geçer.",
        ("izmir lambayı kim onardı", "ÇAVDAR ekmeği", "demiryolu köprüsü"),
    ),
    "Hindi": (
        "प्रकाशस्तंभ के रखवाले ने तूफ़ान से पहले दीपक ठीक किया।",
        "बेकरी शुक्रवार को राई की रोटी बेचती है।",
        "एक रेलवे पुल घाटी को पार करता है।",
        ("दीपक किसने ठीक किया", "राई की रोटी", "रेलवे पुल"),
    ),
}


@pytest.fixture(scope="module")
def languages(tmp_path_factory: pytest.TempPathFactory) -> BM25Index:
    """Three texts in each language, and as many composed as decomposed."""
    folder = tmp_path_factory.mktemp("index") / "languages"
    passages = [
        Passage(
            f"{name} {n}#0", f"{name} {n}", "", unicodedata.normalize(("NFC", "NFD")[n % 2], text)
        )
        for name, (*texts, _) in KNOWN.items()
        for n, text in enumerate(texts)
        if isinstance(text, str)
    ]
    build_index(folder, passages, IndexSettings(), CorpusReport())
    return BM25Index.open(folder)


@pytest.mark.parametrize("name", KNOWN)
def test_every_known_item_is_found_in_twelve_languages(languages: BM25Index, name: str) -> None:
    for n, query in enumerate(KNOWN[name][-1]):
        for form in ("NFC", "NFD", "NFKC"):
            hits = languages.search([unicodedata.normalize(form, query)], SearchOptions(k=3))[0]
            assert f"{name} {n}" in [hit.document_id for hit in hits]


def test_the_share_of_text_that_is_found_only_as_written_is_counted(tmp_path: Path) -> None:
    assert (
        without_stems(terms("plain ASCII, naïve Größe, Привет, καλημέρα, سلام, 中文, ไทย, 12")) == 0
    )
    assert without_stems(terms("a घाटी b שלום")) == 8
    texts = ["Only English here.", "एक रेलवे पुल"]
    passages = [Passage(f"{n}#0", str(n), "", text) for n, text in enumerate(texts)]
    counts = build_index(tmp_path / "IDX", passages, IndexSettings(), CorpusReport()).content.counts
    assert (counts["letters"], counts["letters_without_stems"]) == (25, 10)


@pytest.mark.parametrize("language", LANGUAGES)
def test_words_are_found_by_the_stems_of_the_language_that_was_asked_for(
    tmp_path: Path, language: str
) -> None:
    passages = [Passage("a#0", "a", "", "Die Häuser der Städte"), Passage("b#0", "b", "", "коты")]
    build_index(tmp_path / "IDX", passages, IndexSettings(language=language), CorpusReport())
    index = BM25Index.open(tmp_path / "IDX")
    houses, cats = index.search(["Hauses", "кот"], SearchOptions())
    assert [hit.id for hit in cats] == ["b#0"]
    if language == "german":
        houses, towns, stop = index.search(["Haus", "Stadt", "der die"], SearchOptions())
        assert [hit.id for hit in (*houses, *towns)] == ["a#0", "a#0"]
        assert stop == []


def test_a_language_that_is_not_known_is_refused() -> None:
    with pytest.raises(SettingsError, match="klingon': expected one of danish, dutch"):
        IndexSettings(language="klingon")
