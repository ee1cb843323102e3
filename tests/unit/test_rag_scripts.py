"""Words in scripts without spaces between them: what BM25 finds, and what becomes of what an earlier release stored."""

import json
import re
from pathlib import Path

import pytest
from confide.errors import StateError
from confide.rag import lexical
from confide.rag.access import Caller
from confide.rag.calibration import Calibration, calibration_of
from confide.rag.lexical import LexicalIndex, words

from tests.rag_worlds import World

# Rules of a clinic, each with a question that asks for it in other words. Written for this test.
PAIRS = {
    "Chinese": [
        ("门诊挂号费为每次四十元，儿童免收挂号费。", "看一次门诊要交多少挂号费？"),
        ("医院食堂早上七点开门，晚上八点关门。", "食堂几点关门？"),
        ("孕妇不得服用本药，哺乳期妇女应先咨询医生。", "怀孕期间可以吃这种药吗？孕妇能服用吗？"),
        ("病人出院后两周内必须回院复查伤口。", "出院以后什么时候复查？"),
        ("探视时间为每天下午三点到五点，每次最多两人。", "探视病人最多可以几个人？"),
        ("停车场位于住院楼的地下二层，前一小时免费。", "停车场在哪里？"),
        ("手术前八小时禁止进食，前两小时禁止饮水。", "做手术之前多久不能进食？"),
        ("血压高于一百四十毫米汞柱时应通知值班护士。", "血压多高要通知护士？"),
        ("病历复印件需要本人身份证，三个工作日后领取。", "复印病历需要带什么证件？"),
        ("疫苗应在二至八摄氏度的冰箱中保存。", "疫苗要保存在什么温度？"),
        ("护士每四小时测量一次体温并记录。", "多长时间测一次体温？"),
        ("医疗废物必须装入黄色垃圾袋。", "医疗废物放进哪种颜色的袋子？"),
        ("员工每年有十五天带薪年假。", "年假有几天？"),
        ("化验结果通常在第二天上午公布在网站上。", "化验结果什么时候出来？"),
        ("发生火灾时请走楼梯，不要乘坐电梯。", "火灾的时候能坐电梯吗？"),
        ("糖尿病患者的早餐不含糖，由营养师安排。", "谁安排糖尿病患者的早餐？"),
        ("进入重症监护室前必须洗手并戴口罩。", "进监护室要戴口罩吗？"),
        ("急诊科二十四小时开放，无需预约。", "急诊需要预约吗？"),
        ("医疗保险报销住院费用的百分之八十。", "住院费用保险能报销多少？"),
        ("献血者的体重不得低于五十公斤。", "献血对体重有什么要求？"),
    ],
    "Japanese": [
        ("初診料は四千円です。子どもの診察は無料です。", "初診料はいくらですか。"),
        ("外来の受付は午前八時に始まり、正午に終わります。", "受付は何時に始まりますか。"),
        ("妊娠中の方はこの薬を服用しないでください。", "妊娠していますが、この薬を服用できますか。"),
        ("退院後は二週間以内に傷の検査を受けてください。", "退院してからいつ検査に行けばよいですか。"),
        ("面会は一度に二人までとし、午後三時から五時までです。", "面会は何人までできますか。"),
        ("駐車場は本館の地下にあり、最初の一時間は無料です。", "駐車場はどこですか。"),
        ("手術の八時間前から食事をとることはできません。", "手術の前に食事をしてもいいですか。"),
        ("血圧が百四十を超えたら、すぐに看護師に知らせること。", "血圧が高いとき誰に知らせますか。"),
        ("カルテの写しの請求には身分証明書が必要です。", "カルテの写しをもらうには何が必要ですか。"),
        ("ワクチンは二度から八度の冷蔵庫で保管する。", "ワクチンの保管温度は何度ですか。"),
        ("体温は四時間ごとに測り、記録用紙に書き込む。", "体温を測るのは何時間ごとですか。"),
        ("感染性の廃棄物は黄色い袋に入れて捨てる。", "廃棄物はどの色の袋に入れますか。"),
        ("職員の有給休暇は年に二十日である。", "有給休暇は何日ありますか。"),
        ("血液検査の結果は翌日の午前中に分かります。", "血液検査の結果はいつ分かりますか。"),
        ("火災のときはエレベーターを使わず、階段で避難する。", "火災のときエレベーターは使えますか。"),
        ("糖尿病の患者の朝食は栄養士が決める。", "糖尿病の朝食は誰が決めますか。"),
        ("集中治療室に入る前に手を洗い、マスクをつける。", "集中治療室ではマスクが必要ですか。"),
        ("救急外来は予約なしで二十四時間利用できます。", "救急に予約は必要ですか。"),
        ("入院費の三割は患者が自分で払う。", "入院費は患者がどれだけ払いますか。"),
        ("献血ができるのは体重五十キロ以上の人に限る。", "献血するには体重が何キロ必要ですか。"),
    ],
    "Korean": [
        ("초진료는 사만 원이며 어린이는 무료입니다.", "초진료가 얼마입니까?"),
        ("접수는 오전 여덟 시에 시작하여 정오에 끝납니다.", "접수가 몇 시에 시작됩니까?"),
        ("임산부는 이 약을 복용하지 마십시오.", "임산부도 약을 복용할 수 있습니까?"),
        ("주차장은 본관 지하에 있습니다.", "주차장이 어디입니까?"),
        ("수술 여덟 시간 전부터 음식을 먹을 수 없습니다.", "수술을 받기 전에 음식은 먹어도 됩니까?"),
        ("백신은 냉장고에 보관해야 합니다.", "백신을 어디에 보관합니까?"),
        ("화재가 나면 계단으로 대피하십시오.", "화재 때는 어디로 대피합니까?"),
        ("진료 기록을 복사하려면 신분증이 필요합니다.", "기록의 복사에 무엇이 필요합니까?"),
    ],
    "Thai": [
        ("ค่าตรวจครั้งแรกสี่ร้อยบาท เด็กไม่ต้องเสียค่าใช้จ่าย", "ค่าตรวจครั้งแรกเท่าไร"),
        ("หญิงมีครรภ์ห้ามใช้ยานี้โดยเด็ดขาด", "หญิงมีครรภ์ใช้ยานี้ได้ไหม"),
        ("ที่จอดรถอยู่ชั้นใต้ดินของอาคารหลัก", "ที่จอดรถอยู่ที่ไหน"),
        ("ห้ามรับประทานอาหารแปดชั่วโมงก่อนผ่าตัด", "ก่อนผ่าตัดรับประทานอาหารได้หรือไม่"),
        ("เก็บวัคซีนไว้ในตู้เย็นที่อุณหภูมิสองถึงแปดองศา", "ต้องเก็บวัคซีนที่อุณหภูมิเท่าไร"),
        ("เมื่อเกิดเพลิงไหม้ให้ใช้บันไดและห้ามใช้ลิฟต์", "เกิดเพลิงไหม้ใช้ลิฟต์ได้ไหม"),
        ("พยาบาลวัดความดันโลหิตทุกสี่ชั่วโมง", "วัดความดันโลหิตบ่อยแค่ไหน"),
        ("ผู้ป่วยต้องล้างมือก่อนเข้าห้องผู้ป่วยหนัก", "ก่อนเข้าห้องผู้ป่วยหนักต้องทำอะไร"),
        ("ลานจอดรถมีค่าบริการชั่วโมงละยี่สิบบาท", "จอดรถเสียเงินเท่าไร"),
        ("ผู้บริจาคโลหิตต้องหนักอย่างน้อยห้าสิบกิโลกรัม", "บริจาคเลือดหรือโลหิตต้องหนักเท่าไร"),
        ("ญาติเยี่ยมผู้ป่วยได้ครั้งละสองคน", "เยี่ยมได้กี่คน"),
        ("พนักงานลาพักร้อนได้ปีละสิบวัน", "วันลาพักร้อนมีกี่วัน"),
    ],
}


def recall_at_5(language: str) -> float:
    """Among all passages of all languages."""
    passages = [passage for pairs in PAIRS.values() for passage, _ in pairs]
    index = LexicalIndex.build([str(place) for place in range(len(passages))], passages)
    found = 0
    for passage, question in PAIRS[language]:
        scores = index.scores(question)
        best = [place for place in (-scores).argsort(kind="stable")[:5] if scores[place] > 0]
        found += passages.index(passage) in best
    return found / len(PAIRS[language])


def words_of_format_1(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.casefold())


@pytest.mark.parametrize(
    ("language", "before"), [("Chinese", 0.0), ("Japanese", 0.0), ("Korean", 0.25), ("Thai", 11 / 12)]
)
def test_words_are_found_in_scripts_without_spaces(
    language: str, before: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert recall_at_5(language) == 1.0
    monkeypatch.setattr(lexical, "words", words_of_format_1)
    assert recall_at_5(language) == before


def test_what_words_are_in_each_script() -> None:
    assert words("The visits cost 40 crowns; see §3_b.") == ["visit", "cost", "40", "crown", "see", "3", "b"]
    assert words("医院食堂") == ["医院", "院食", "食堂", "医", "院", "食", "堂"]
    assert words("薬は2週間") == ["薬は", "薬", "2", "週間", "週", "間"]
    assert words("ﾒｶﾞﾈ・薬") == ["メガ", "ガネ", "薬"]
    assert words("초진료") == ["초진", "진료"]
    assert words("ยานี้ 5 มก.") == ["ยาน", "านี", "นี้", "5", "มก"]
    assert words("Prüfung Ärzte врачи हिन्दी") == ["prüfung", "ärzte", "врачи", "ह", "न", "द"]


def test_one_chinese_character_is_found_within_a_word() -> None:
    index = LexicalIndex.build(["a", "b"], ["所得税は五月に払う。", "会費は四月に払う。"])
    assert index.scores("税").tolist()[0] > 0 == index.scores("税").tolist()[1]


def test_an_index_is_read_back_as_it_was_stored_and_one_of_another_format_is_not(tmp_path: Path) -> None:
    texts = ["The wall is thick.", "壁は厚い。", "..."]
    made = LexicalIndex.build(["a", "b", "c"], texts)
    made.save(tmp_path, 7)
    found = LexicalIndex.load(tmp_path, 7)
    assert found is not None and found.names == ["a", "b", "c"]
    for question in ("thick walls", "壁", "nothing"):
        assert found.scores(question).tolist() == made.scores(question).tolist()
        assert found.ceiling(question) == made.ceiling(question)
    assert LexicalIndex.load(tmp_path, 8) is None
    (tmp_path / "stamp.json").write_text(json.dumps({"format": 1, "generation": 7}))
    assert LexicalIndex.load(tmp_path, 7) is None


def test_a_calibration_of_format_1_is_refused_where_its_words_are_others_now(tmp_path: Path) -> None:
    world = World(tmp_path)
    texts = [passage for passage, _ in PAIRS["Chinese"]]
    world.add([world.file(f"{n}.txt", text) for n, text in enumerate(texts)], collection="chinese")
    world.add(
        [world.file(f"{n}.md", f"The fee of room {n} is {n} crowns.") for n in range(39)] + [world.file("z.txt", "壁")],
        collection="english",
    )
    for name, refused in (("chinese", True), ("english", False)):
        collection, _ = world.library.opened(Caller.operator("clinic"), name)
        Calibration(lexical_weight=0.5, questions=40).save(collection.calibration_folder)
        kept = collection.calibration_folder / "calibration.json"
        assert json.loads(kept.read_bytes())["lexical_format"] == 1
        if refused:
            with pytest.raises(StateError, match=r"in \d+% of its passages.*calibrate` again"):
                calibration_of(collection)
        else:
            assert calibration_of(collection).lexical_weight == 0.5
        Calibration(lexical_weight=0.5, questions=40, lexical_format=lexical.FORMAT).save(collection.calibration_folder)
        assert calibration_of(collection).lexical_weight == 0.5
        kept.unlink()
        assert calibration_of(collection) == Calibration()
