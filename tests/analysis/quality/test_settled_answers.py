"""Which number or letter an answer settles on: answers as models write them, in several languages."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kvload.analysis.quality.scorers import SCORERS, score
from kvload.errors import UsageError


@pytest.mark.parametrize(
    ("answer", "expected", "wanted"),
    [
        ("The answer is 18 (9 eggs at $2 each).", "18", 1),
        ("18km", "18", 1),
        ("20kg", "20", 1),
        ("It is the 18th", "18", 1),
        ("18x", "18", 1),
        ("So 18/1", "18", 1),
        ("1/3", "2/3", 0),
        ("2/6", "1/3", 1),
        ("共42个", "42", 1),
        ("70{,}000", "70000", 1),
        ("#### 18\nsome 5", "18", 1),
        ("\\boxed{18}", "18", 1),
        ("\\boxed{\\frac{1}{3}}", "1/3", 1),
        ("$\\dfrac{1}{3}$", "1/3", 1),
        ("**18**", "18", 1),
        ("$18.00", "18", 1),
        ("$70,000", "70000", 1),
        ("-5", "5", 0),
        ("10-5=5", "5", 1),
        ("version 2b, so 7", "7", 1),
        ("1e3", "1000", 1),
        ("3.5", "35", 0),
        ("2 1/2", "2.5", 1),
        ("2½", "2.5", 1),
        ("٣٥", "35", 1),
        ("The answer is 9*2 = 18 dollars.", "18", 1),
        ("The answer is 18 = 9*2", "18", 1),
        ("GPT-4 says 7 and GPT-4", "7", 1),
        ("3 \\times 10^4", "30000", 1),
        ("1,00,000", "100000", 1),
        ("1,2,3", "3", 1),
        ("Rs.500", "500", 1),
        ("x = \u20137", "-7", 1),
        ("from 2\u20137", "7", 1),
        ("####\n18\n\nI used 3 steps.", "18", 1),
        ("#### 18\n#### Explanation: 3 hens", "18", 1),
        ("#### 1. Count\n9 eggs\n#### 2. Price\n$2 each, so 18", "18", 1),
        ("#### The answer is 18 (3 x 6)", "18", 1),
        ("The answer is 12. Wait, the answer is 18. That is 3 more", "18", 1),
        ("答案是42，共3步", "42", 1),
        ("50%", "50", 1),
        ("-$5", "-5", 1),
        ("reasoning ... #### 18", "#### 18", 1),
        ("Answer: **$18** per day for 3 days", "18", 1),
        ("2.5.1", "1", 0),
        ("#### Step 3: compute\nthe answer is 18", "18", 1),
        ("The answer to the question of 5 ducks is 18.", "18", 1),
        ("The answer is not 5 but 18", "18", 1),
        ("The final answer is \\(\\boxed{42}\\).", "42", 1),
        ("x = 5", "5", 1),
        ("She earns $18 every day.", "18", 1),
        ("First 3, then 5. The total is 8 apples (3+5).", "8", 1),
        ("答案：20kg", "20", 1),
        ("一共42个苹果", "42", 1),
        ("42個", "42", 1),
        ("0.5", "1/2", 1),
        ("1/2", "0.5", 1),
        ("½", "0.5", 1),
        ("It's 5, not 6", "6", 1),
        ("3.14159", "3.14159", 1),
        ("3.1416", "3.14159", 0),
        ("1,234.5", "1234.5", 1),
        ("+5", "5", 1),
        ("5%", "5", 1),
        ("The answer is 5:30", "5", 1),
        ("12/25/2024", "2024", 0),
        ("The answer is -7.", "-7", 1),
        ("−7", "-7", 1),
        ("#### 1,234", "1234", 1),
        ("####-5", "-5", 1),
        ("#### \n18", "18", 1),
        ("The answer is eighteen", "18", 1),
        ("$1.5 million", "1.5", 1),
        ("1.0", "1", 1),
        ("He has 5.", "5", 1),
        ("18.0%", "18", 1),
        ("Answer: 1/3 cup", "1/3", 1),
        ("1/3", "0.333333333", 1),
        ("5m/s", "5", 1),
        ("20 kg/m3", "20", 1),
        ("20 m^2", "20", 1),
        ("20 m²", "20", 1),
        ("The answer is 20 m².", "20", 1),
        ("100 km2", "100", 1),
        ("CO2: 5", "5", 1),
        ("18 eggs/day", "18", 1),
        ("Réponse : 42", "42", 1),
        ("Antwort: 42", "42", 1),
        ("Ответ: 42", "42", 1),
        ("答えは42です。", "42", 1),
        ("정답은 42입니다", "42", 1),
        ("4️⃣", "4", 1),
        ("1e400", "5", 0),
        ("٤٢", "42", 1),
        ("४२", "42", 1),
        ("So, 3 * 6 = <<3*6=18>>18 dollars.\n#### 18", "18", 1),
        ("<<3*6=18>>18", "18", 1),
    ],
)
def test_numeric(answer: str, expected: str, wanted: float) -> None:
    assert score("numeric", answer, expected) == wanted


@pytest.mark.parametrize(
    ("answer", "expected", "wanted"),
    [
        ("I'm confident it is B", "B", 1),
        ("\\boxed{C}", "C", 1),
        ("$\\boxed{\\text{C}}$", "C", 1),
        ("答案是C", "C", 1),
        ("答案：C。", "C", 1),
        ("选C", "C", 1),
        ("B", "B", 1),
        ("The answer is (C).", "C", 1),
        ("A) is wrong. The answer is D", "D", 1),
        ("A good idea. (B) fits.", "B", 1),
        ("I do not know", "A", 0),
        ("I do not know", "I", 0),
        ("answer: b", "B", 1),
        ("The answer is a good one", "A", 0),
        ("B) Paris is the capital", "B", 1),
        ("**B**", "B", 1),
        ("A is incorrect, B is correct", "B", 1),
        ("A) is wrong. B) fits", "B", 1),
        ("The correct answer is option D.", "D", 1),
        ("The answer is A because", "A", 1),
        ("The answer is not B but C", "C", 1),
        ("Answer: (B) or maybe the answer is C", "C", 1),
        ("I think B", "B", 1),
        ("I would pick C.", "C", 1),
        ("Final answer: **D**", "D", 1),
        ("B.", "B", 1),
        ("The answer is I think B", "B", 1),
        ("C because it is", "C", 1),
        ("Ａ", "A", 1),
        ("정답은 B입니다", "B", 1),
        ("正解はBです", "B", 1),
        ("La respuesta correcta es la B", "B", 1),
        ("Option B is correct", "B", 1),
        ("The best choice would be B", "B", 1),
        ("(A) Paris\n(B) Rome\nThe answer is (B)", "B", 1),
        ("My answer is: B) Paris", "B", 1),
        ("Vitamin C is important. The answer: D", "D", 1),
        ("A. Paris", "(A)", 1),
        ("the correct option is c.", "C", 1),
        ("It's B", "B", 1),
        ("I", "A", 0),
        ("A", "B", 0),
        ("The correct answer is: C. Because A is wrong.", "C", 1),
        ("Answer: B\n\nExplanation: A is wrong because", "B", 1),
        ("Let's see. A: no. B: no. C: yes. So C.", "C", 1),
        ("The answer cannot be A. It must be D.", "D", 1),
        ("Both A and B are wrong, so C", "C", 1),
        ("<think>maybe A</think>\nB", "B", 1),
        ("The answer is: \n\nB", "B", 1),
        ('The answer is "B".', "B", 1),
        ("Answer: [[B]]", "B", 1),
        ("ANSWER: B", "B", 1),
        ("The best answer is A: Paris", "A", 1),
        ("So the final answer is $\\mathbf{(B)}$", "B", 1),
        ("I'd say (C)", "C", 1),
        ("I am going with D", "D", 1),
        ("the answer is (b)", "B", 1),
        ("I'm not sure, but the answer is E", "E", 1),
        ("Option A seems plausible, but B is the correct answer.", "B", 1),
        ("选择B", "B", 1),
        ("应该选D。", "D", 1),
        ("答案是：(C)", "C", 1),
        ("C项正确", "C", 1),
        ("The answer is I.", "I", 1),
        ("I", "I", 1),
        ("", "A", 0),
        ("None of these", "A", 0),
        ("The answer is A or B", "A", 0),
        ("Answer - B", "B", 1),
        ("**Answer:** B", "B", 1),
        ("The answer is **B. Rome**", "B", 1),
        ("Answer: B. I am confident", "B", 1),
        ("D", "d", 1),
        ("A, C", "A", 0),
    ],
)
def test_choice(answer: str, expected: str, wanted: float) -> None:
    assert score("choice", answer, expected) == wanted


@pytest.mark.parametrize("space", ["\u00a0", "\u202f", "\u2009"])
def test_thousands_set_off_by_spaces_that_do_not_break(space: str) -> None:
    assert score("numeric", f"1{space}234{space}567", "1234567") == 1


@pytest.mark.parametrize(
    ("name", "answer", "expected"),
    [("numeric", "First there are 18", "18"), ("choice", "Let us look at (B)", "B")],
)
def test_a_cut_answer_counts_only_where_it_is_declared(name: str, answer: str, expected: str) -> None:
    assert score(name, answer, expected) == 1
    assert score(name, answer, expected, is_cut=True) == 0
    declared = f"The answer is {expected}. To be sure, let us check 7"
    assert score(name, declared, expected, is_cut=True) == 1


@given(
    st.integers(-(10**9), 10**9),
    st.sampled_from(["{}", "The answer is {}.", "#### {}", "\\boxed{{{}}}", "{}kg", "共{}个"]),
)
def test_any_whole_number_is_found_in_any_frame(number: int, frame: str) -> None:
    assert score("numeric", frame.format(number), str(number)) == 1
    assert score("numeric", frame.format(f"{number:,}"), str(number)) == 1
    assert score("numeric", frame.format(number), str(number + 1)) == 0


@given(
    st.sampled_from("ABCDEFGHIJ"),
    st.sampled_from("ABCDEFGHIJ"),
    st.sampled_from(
        ["{}", "({})", "The answer is {}.", "答案是{}", "\\boxed{{{}}}", "So the correct option is **{}**."]
    ),
)
def test_a_letter_is_that_letter_and_no_other(letter: str, other: str, frame: str) -> None:
    assert score("choice", frame.format(letter), other) == float(letter == other)


@pytest.mark.parametrize("name", SCORERS)
@example(text="12\U0001e4f0 and \U00010d40")
@given(text=st.text(max_size=60))
def test_any_text_is_scored(name: str, text: str) -> None:
    some = {"numeric": "1", "choice": "A", "regex": "a", "ifeval": '[{"id": "punctuation:no_comma"}]'}
    expected = some.get(name, "a word")
    assert 0 <= score(name, text, expected) <= 1


@pytest.mark.parametrize(
    ("name", "answer", "expected", "wanted"),
    [
        ("numeric", "<think>maybe \\boxed{7}</think>It is 9.", "9", 1),
        ("numeric", "so the answer is 7</think>\n\n9", "9", 1),
        ("numeric", "<think>The answer is 7", "7", 0),
        ("numeric", "[THINK]answer: 3[/THINK]4", "4", 1),
        ("numeric", "\u25c1think\u25b7the answer is 3\u25c1/think\u25b74", "4", 1),
        ("numeric", "<|channel|>analysis<|message|>answer is 3<|end|><|channel|>final<|message|>4", "4", 1),
        ("numeric", "The <think> tag is the answer: 5", "5", 1),
        ("choice", "<think>The answer is A.</think>\n\nB", "B", 1),
        ("choice", "<think>The answer is A", "A", 0),
        ("choice", "B <thinking>is A better? the answer is A</thinking>", "B", 1),
        ("exact", "<think>Rome? No.</think>Paris", "Paris", 1),
        ("f1", "<think>Paris London</think>Paris", "Paris", 1),
        ("regex", "<think>No</think>Yes", "^Yes$", 1),
        ("ifeval", "<think>a, b</think>ab", '[{"id": "punctuation:no_comma"}]', 1),
        ("numeric", "<answer>18</answer> in 3 steps", "18", 1),
        ("numeric", "<reasoning>answer: 7</reasoning>\n<answer>9</answer>", "9", 1),
        ("numeric", "<answer></answer> so 5", "5", 1),
        ("choice", "<answer>b</answer>", "B", 1),
        ("choice", "<answer>The answer is B, not A</answer> A", "B", 1),
    ],
)
def test_what_stands_in_marks(name: str, answer: str, expected: str, wanted: float) -> None:
    assert score(name, answer, expected) == wanted


@pytest.mark.parametrize(
    ("answer", "expected", "wanted"),
    [
        ("\\boxed{-\\frac{3}{4}}", "-0.75", 1),
        ("3 - \\frac{1}{2}", "0.5", 1),
        ("\\boxed{\\frac12}", "0.5", 1),
        ("\\cfrac{1}{2}", "1/2", 1),
        ("\\boxed{10^{3}}", "1000", 1),
        ("The answer is 2^10", "1024", 1),
        ("10\u00b2 cm", "100", 1),
        ("so 5^2 = 25", "25", 1),
        ("3*10^999", "5", 0),
        ("0^-1", "5", 0),
        ("\\boxed{1\\ 000}", "1000", 1),
        ("1 000 000", "1000000", 1),
        ("It is 12 050 people", "12050", 1),
        ("lists 100 200 300", "300", 1),
        ("5 100", "100", 1),
        ("\\boxed{1.2 \\cdot 10^{5}}", "120000", 1),
    ],
)
def test_numbers_as_formulas_write_them(answer: str, expected: str, wanted: float) -> None:
    assert score("numeric", answer, expected) == wanted


DECLARATIONS = [
    "La r\u00e9ponse finale est {}",
    "Le r\u00e9sultat est {}",
    "El resultado final es {}",
    "Die Antwort lautet {}",
    "Die Antwort betr\u00e4gt {}",
    "La risposta corretta \u00e8 {}",
    "A resposta correta \u00e9 {}",
    "Het juiste antwoord is {}",
    "Svaret \u00e4r {}",
    "Odpowied\u017a to {}",
    "\u041e\u0442\u0432\u0435\u0442: {}",
    "Cevap {}",
    "Jawaban yang benar adalah {}",
    "\u0110\u00e1p \u00e1n \u0111\u00fang l\u00e0 {}",
    "\u6240\u4ee5\u7b54\u6848\u5e94\u8be5\u662f{}",
    "\u7b54\u3048\uff1a{}",
    "\ub2f5\uc740 {}",
    "\u0627\u0644\u0625\u062c\u0627\u0628\u0629 \u0627\u0644\u0635\u062d\u064a\u062d\u0629 \u0647\u064a {}",
    "\u0938\u0939\u0940 \u0909\u0924\u094d\u0924\u0930 {}",
]


@pytest.mark.parametrize("declared", DECLARATIONS)
def test_answers_are_declared_in_many_languages(declared: str) -> None:
    assert score("numeric", declared.format(18) + ", 9 * 2", "18") == 1
    assert score("choice", declared.format("B") + ", (A)", "B") == 1
    assert score("choice", declared.format("B") + ", (A)", "B", is_cut=True) == 1


@pytest.mark.parametrize(
    ("answer", "expected", "wanted"),
    [
        ("(b)", "B", 1),
        ("b)", "B", 1),
        ("(b) London, since (a) is wrong", "B", 1),
        ("it should be (b).", "B", 1),
        ("\u249d", "B", 1),
        ("egg(s)", "S", 0),
        ("\\boxed{b}", "B", 1),
        ("\\boxed{\\text{(b)}}", "B", 1),
        ("\\boxed{\\mathrm{b}}", "B", 1),
        ("Answer: B\nOption A is too small.", "B", 1),
        ("Answer: B\nThe answer choices C and D are distractors", "B", 1),
        ("The answer is B. Option C describes Paris.", "B", 1),
        ("I believe option B", "B", 1),
        ("The right choice is b", "B", 1),
        ("the correct answer is 'b'", "B", 1),
        ("选项C是正确的，选项D不正确", "C", 1),
        ("A错误，B错误，C正确，D错误", "C", 1),
        ("The answer is A is wrong; B is right", "B", 1),
    ],
)
def test_letters_in_brackets_and_letters_only_mentioned(answer: str, expected: str, wanted: float) -> None:
    assert score("choice", answer, expected) == wanted


@pytest.mark.parametrize(
    ("answer", "expected", "wanted"),
    [
        ("The answer is 3,14.", "3.14", 1),
        ("3.14", "3,14", 1),
        ("3,14", "314", 0),
        ("1.234,5", "1234.5", 1),
        ("1.234.567", "1234567", 1),
        ("Die Antwort ist 1.234,50 \u20ac", "1234.5", 1),
        ("0,5", "0.5", 1),
        ("0,333", "0.333", 1),
        ("1,234", "1234", 1),
        ("1,23,456", "123456", 1),
        ("12,50 \u20ac", "12.5", 1),
        ("1 000,5", "1000.5", 1),
        ("\u041e\u0442\u0432\u0435\u0442: 3,5", "3.5", 1),
        ("3,5 + 4,5 = 8,0", "8", 1),
        ("Bei 2,5 kg kostet es 1.234 Euro", "1234", 1),
        ("It weighs 1.234 kg", "1.234", 1),
        ("\u0663\u066b\u0661\u0664", "3.14", 1),
        ("\\boxed{3{,}14}", "3.14", 1),
        ("a list: 1, 2, 3,4", "4", 1),
        ("(3,4)", "4", 1),
        ("x in {1,2}", "2", 1),
        ("1,2,3", "3", 1),
        ("on May 5,2024 he had 7", "7", 1),
        ("192.168.1.1", "192", 0),
    ],
)
def test_points_and_commas_of_other_countries(answer: str, expected: str, wanted: float) -> None:
    assert score("numeric", answer, expected) == wanted


@pytest.mark.parametrize(
    ("answer", "expected", "wanted"),
    [
        ("forty-two", "42", 1),
        ("The answer is **forty-two**.", "42", 1),
        ("The answer is five, as step 3 shows", "5", 1),
        ("The answer is two times 5 = 10", "10", 1),
        ("The answer is about one hundred and five dollars", "105", 1),
        ("#### eighteen", "18", 1),
        ("He has three apples and two pears, so five fruits.", "5", 1),
        ("one million two hundred thousand", "1200000", 1),
        ("two and a half", "2.5", 1),
        ("three quarters", "0.75", 1),
        ("minus five", "-5", 1),
        ("two dozen", "24", 1),
        ("half a dozen", "6", 1),
        ("So we get 18. This one is right.", "18", 1),
        ("There are five. No one is left.", "5", 1),
        ("The answer is one of the above", "1", 0),
        ("30, one of many", "30", 1),
        ("The third of them", "3", 0),
        ("often", "10", 0),
        ("2 million", "2000000", 1),
        ("2 million", "2", 1),
        ("$3.5 billion", "3500000000", 1),
        ("5 million", "5 billion", 0),
        ("5 million", "5,000,000", 1),
        ("3\u4e07", "30000", 1),
        ("50%", "0.5", 1),
        ("50%", "50", 1),
        ("10k", "10000", 1),
        ("20kg", "20000", 0),
    ],
)
def test_numbers_in_words(answer: str, expected: str, wanted: float) -> None:
    assert score("numeric", answer, expected) == wanted


@pytest.mark.parametrize(
    ("answer", "expected", "wanted"),
    [
        ("The answer is 5 or 6", "5", 0),
        ("5 or 6", "6", 0),
        ("either 12 or 13.", "13", 0),
        ("#### 5 or 6", "5", 0),
        ("\\boxed{2 \\text{ or } 3}", "3", 0),
        ("x = 2 or x = 3", "3", 0),
        ("5 apples or 6 apples", "6", 0),
        ("The answer is 5 or five", "5", 1),
        ("The answer is 1/2 or 0.5", "0.5", 1),
        ("The answer is 90 minutes or 1.5 hours", "90", 1),
        ("The answer is 18 or 3 times 6", "18", 1),
        ("$0.75 or 75 cents", "75", 1),
        ("Total: $1,200.50 or about $1,200", "1200", 1),
        ("After 5 or 6 days he has 30", "30", 1),
        ("The answer is 5, not 6", "5", 1),
    ],
)
def test_a_number_left_open_is_none(answer: str, expected: str, wanted: float) -> None:
    assert score("numeric", answer, expected) == wanted


@pytest.mark.parametrize(
    ("answer", "expected", "wanted"),
    [
        ("99999999999999999998", "99999999999999999999", 0),
        ("9007199254740993", "9007199254740992", 0),
        ("9007199254740993", "9007199254740993.0", 0),
        ("1" * 299, "1" * 299, 1),
    ],
)
def test_whole_numbers_are_equal_digit_by_digit(answer: str, expected: str, wanted: float) -> None:
    assert score("numeric", answer, expected) == wanted


@pytest.mark.parametrize(
    "answer",
    [
        "A or B", "The answer is A or B.", "(A) or (B)", "**A** or **B**", "The answer is either A or B", "A|B",
        "A oder B", "A ou B", "A\u6216B", "\u7b54\u6848\u662fA\u6216B", "Answer: A or maybe B", "option A or option B",
        "It is A or B", "The answer is A) or B)", "The answer is A (Paris) or B (Rome)", "\\boxed{A \\text{ or } B}",
        "<answer>A or B</answer>", "A and B", "A, B", "A/B", "A & B", "\\boxed{A, B}", "(A), (B)", "A, B and C",
        "The answer is neither A nor B", "Not A", "A) Paris\nB) Rome", "A) Paris\nB) Rome\nC) Bonn",
    ],
)  # fmt: skip
def test_several_letters_are_not_one(answer: str) -> None:
    assert score("choice", answer, "A") == score("choice", answer, "B") == 0


@pytest.mark.parametrize(
    ("answer", "expected", "wanted"),
    [
        ("A and C", "A, C", 1),
        ("The correct options are C, A", "A and C", 1),
        ("A", "A, C", 0),
        ("A, B and C", "A, C", 0),
        ("It could be A or B, but B is correct", "B", 1),
        ("A or B? The answer is B.", "B", 1),
        ("The answer is D, A and B are wrong", "D", 1),
        ("The answer is B and A is wrong", "B", 1),
        ("The answer is C, and A is a distractor", "C", 1),
        ("A and B is correct", "B", 0),
        ("The answer is D: both A and B", "D", 1),
        ("(D) A or B", "D", 1),
        ("C) Neither A nor B", "C", 1),
        ("A) Paris\nB) Rome\nC) Bonn\n\nB", "B", 1),
        ("A. Paris\nExplanation: it is the capital", "A", 1),
        ("The answer is A because B or C would need more", "A", 1),
    ],
)
def test_letters_that_belong_together(answer: str, expected: str, wanted: float) -> None:
    assert score("choice", answer, expected) == wanted


def test_an_expected_letter_must_be_said() -> None:
    with pytest.raises(UsageError, match="several to choose from"):
        score("choice", "A", "A or B")
