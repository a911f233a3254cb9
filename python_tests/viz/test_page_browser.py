"""The page of ``ficoco show`` in a browser: sliders, methods, patches by mouse, keyboard and finger, no network."""

from __future__ import annotations

import itertools
import re

import pytest
from helpers import browsers
from helpers.browsers import key, one, point, press, said
from helpers.pages import ASKED, GRID, LAYERS, METHODS, RATIOS, SIDES, document, runs

from ficoco_ext.viz import page
from ficoco_ext.viz.traces import groups, holders, trace

pytestmark = pytest.mark.browser

PATCHES, (HEIGHT, WIDTH) = GRID[0] * GRID[1], GRID
STARTS = {"vision": 0, "text": SIDES["vision"]}
NUMBERS = [STARTS[side] + index for side, index in LAYERS]  # of the layers that reduce, among all
LAST = sum(SIDES.values()) - 1
GIVEN = {(run.method, run.keep_ratio): run for run in runs()}


@pytest.fixture(scope="module")
def driver():
    with browsers.chromium() as driver:
        yield driver


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "a page.html"
    page.save(document(runs()), path)
    return path.as_uri()


@pytest.fixture(params=[1280, 360])
def opened(driver, address, request):
    """The page in a wide and in a narrow window. Nothing may have been complained about, or fetched, in the end."""
    browsers.resize(driver, request.param)
    browsers.complaints(driver), browsers.requested(driver)
    driver.get(address)
    yield driver
    assert browsers.complaints(driver) == []
    assert {url for url in browsers.requested(driver) if not url.startswith("data:")} <= {address}
    assert driver.execute_script("return performance.getEntriesByType('resource').map((one) => one.name)") == []


def cell(driver, patch):
    return one(driver, f'[data-patch="{patch}"]')


def choose(driver, method, ratio=RATIOS[0], layer=LAST):
    """By the keyboard alone."""
    one(driver, f'#methods input[value="{list(METHODS).index(method)}"]').send_keys(key("SPACE"))
    for name, value in (("ratio", RATIOS.index(ratio)), ("layer", layer + 1)):
        one(driver, f"#{name}").send_keys(key("HOME"), *[key("ARROW_RIGHT")] * value)


def steps_until(layer):
    return sum(number <= layer for number in NUMBERS)


def check_state(driver, method, ratio, layer):
    """Counts, colours and groups of the picture against the records."""
    done = steps_until(layer)
    reduction = GIVEN[method, ratio].reductions[done - 1] if done else None
    held = holders(reduction) if done else list(range(PATCHES))
    left = sum(holder == patch for patch, holder in enumerate(held))
    wanted = f"{left} left, {sum(h >= 0 for h in held) - left} merged, {held.count(-1)} dropped"
    if layer in NUMBERS:
        wanted += f"; {reduction.sources.shape[1]} removed in this layer"
    names = [f"{side} layer {index}" for side, count in SIDES.items() for index in range(count)]
    name = names[layer] if layer >= 0 else "before the first layer"
    assert said(driver, "#counts") == f"{name}: {wanted}"
    assert said(driver, "#layer-value") == f"{name}: {left} left"
    assert one(driver, "#layer").get_attribute("aria-valuetext") == f"{name}: {left} left"
    drawn = driver.execute_script(
        "return [...document.querySelectorAll('#drawing > g:first-of-type > rect')]"
        ".map((one) => one.getAttribute('class'))"
    )
    members = groups(reduction) if done else {}
    for holder, kind in zip(held, drawn, strict=True):
        assert kind.split()[0] == ("dropped" if holder < 0 else "group" if holder in members else "alone")
    for places in members.values():
        assert len({drawn[patch] for patch in places}) == 1
    dots = len(driver.find_elements("css selector", "#drawing .holder"))
    assert dots == len(members)


def check_patch(driver, method, ratio, layer, patch):
    """The tables, words and arrows of a patch against the trace that Python computes."""
    done = steps_until(layer)
    shares, dropped, moves = {patch: 1.0}, 0.0, 0
    if done:
        wanted = trace(GIVEN[method, ratio].reductions[:done], patch)
        shares, dropped = wanted.shares, wanted.dropped
        moves = sum(len(step.moves) for step in wanted.steps)
    name, words, rows, ways, dots = driver.execute_script(_PATCH)
    assert name == f"Patch {patch // WIDTH},{patch % WIDTH}"
    shown = {int(at): float(share) for at, share, *_ in rows}
    assert shown == pytest.approx(shares | ({-1: dropped} if dropped else {}), abs=3e-6)
    for at, share, where, percent, _ in rows:
        assert where == ("dropped" if int(at) < 0 else f"{int(at) // WIDTH},{int(at) % WIDTH}")
        assert float(percent.removesuffix(" %")) == pytest.approx(100 * float(share), abs=0.0501)
    order = [float(share) for at, share, *_ in rows if int(at) >= 0]
    assert order == sorted(order, reverse=True)
    assert (ways, dots) == (moves, len(set(shares) - {patch}))
    if not shares:
        assert words.startswith("Dropped: no token holds it.")
    elif patch in shares:
        assert words.startswith("Left")
    else:
        share, row, column = re.search(r"([\d.]+) % of it is in (\d+),(\d+)", words).groups()
        assert float(share) == pytest.approx(100 * shares[int(row) * WIDTH + int(column)], abs=0.0501)
        assert float(share) == pytest.approx(100 * max(shares.values()), abs=0.0501)


_PATCH = """
const all = (selector) => [...document.querySelectorAll(selector)];
const rows = all("#shares tbody tr").map((one) => [
  one.dataset.patch, one.dataset.share, ...[...one.cells].map((cell) => cell.textContent)]);
return [document.querySelector("#patch-name").innerText, document.querySelector("#story").innerText, rows,
  all("#drawing .way").length, all("#drawing .share").length];
"""


@pytest.mark.parametrize(("method", "ratio"), list(itertools.product(METHODS, RATIOS)))
def test_every_layer_by_keyboard(opened, method, ratio):
    choose(opened, method, ratio, -1)
    kept = GIVEN[method, ratio].reductions[-1].kept.shape[1] - 1
    assert said(opened, "#ratio-value") == f"{ratio}: {kept} of {PATCHES} patches in the end"
    check_state(opened, method, ratio, -1)
    for layer in range(LAST + 1):
        one(opened, "#layer").send_keys(key("ARROW_RIGHT"))
        check_state(opened, method, ratio, layer)


@pytest.mark.parametrize("method", METHODS)
def test_every_patch_by_keyboard(opened, method):
    choose(opened, method, RATIOS[1])
    opened.execute_script("document.querySelector('#clear').click()")
    one(opened, '[role="gridcell"][tabindex="0"]').send_keys("")
    for row in range(HEIGHT):  # there and back again, like a plough
        columns = range(WIDTH) if row % 2 == 0 else range(WIDTH - 1, -1, -1)
        for at, column in enumerate(columns):
            if at:
                press(opened, key("ARROW_RIGHT") if row % 2 == 0 else key("ARROW_LEFT"))
            patch = row * WIDTH + column
            assert opened.switch_to.active_element.get_attribute("data-patch") == str(patch)
            check_patch(opened, method, RATIOS[1], LAST, patch)
        press(opened, key("ARROW_DOWN"))
    outline = opened.execute_script("return getComputedStyle(document.activeElement).outlineWidth")
    assert float(outline.removesuffix("px")) >= 2
    press(opened, key("ESCAPE"))
    assert said(opened, "#patch-name") == "No patch selected"
    assert not one(opened, "#tables").is_displayed()


def test_tab_reaches_every_control_in_the_order_of_reading(opened):
    met = []
    for _ in range(5):
        press(opened, key("TAB"))
        active = opened.switch_to.active_element
        met.append(active.get_attribute("id") or active.get_attribute("name") or active.get_attribute("role"))
    assert met[:4] == ["gridcell", "method", "ratio", "layer"]


def test_home_and_end_go_to_the_ends_of_a_row_and_of_the_picture(opened):
    cell(opened, 11).click()
    for keys, wanted in (((key("END"),), 15), ((key("HOME"),), 8), ((key("ARROW_LEFT"),), 8), ((key("ARROW_UP"),), 0)):
        press(opened, *keys)
        assert opened.switch_to.active_element.get_attribute("data-patch") == str(wanted)
    from selenium.webdriver import ActionChains

    ActionChains(opened, duration=20).key_down(key("CONTROL")).send_keys(key("END")).key_up(key("CONTROL")).perform()
    assert said(opened, "#patch-name") == f"Patch {HEIGHT - 1},{WIDTH - 1}"


def test_pointing_shows_a_patch_and_a_click_keeps_it(opened):
    choose(opened, "ficoco-v", RATIOS[1])
    for patch in (0, 13, 30, 47):
        point(opened, cell(opened, patch))
        check_patch(opened, "ficoco-v", RATIOS[1], LAST, patch)
    cell(opened, 21).click()
    point(opened, cell(opened, 5))
    check_patch(opened, "ficoco-v", RATIOS[1], LAST, 5)
    point(opened, one(opened, "h1"))
    check_patch(opened, "ficoco-v", RATIOS[1], LAST, 21)
    for layer in (1, 2, 4):  # the kept one stays while a slider moves
        choose(opened, "mixed", RATIOS[0], layer)
        check_patch(opened, "mixed", RATIOS[0], layer, 21)
    one(opened, "#clear").click()
    assert said(opened, "#patch-name") == "No patch selected"
    cell(opened, 21).click()
    press(opened, key("ESCAPE"))  # the button keeps the focus, so it cannot get it again
    point(opened, one(opened, "h1"))
    assert said(opened, "#patch-name") == "No patch selected"
    cell(opened, 21).click()
    point(opened, one(opened, "h1"))
    check_patch(opened, "mixed", RATIOS[0], 4, 21)


def test_a_finger_selects(opened):
    from selenium.webdriver.common.actions import interaction
    from selenium.webdriver.common.actions.action_builder import ActionBuilder
    from selenium.webdriver.common.actions.pointer_input import PointerInput

    choose(opened, "ficoco-v")
    for patch in (9, 40):
        target = cell(opened, patch)
        opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", target)
        touch = ActionBuilder(opened, mouse=PointerInput(interaction.POINTER_TOUCH, "finger"))
        touch.pointer_action.move_to(target).pointer_down().pointer_up()
        touch.perform()
        check_patch(opened, "ficoco-v", RATIOS[0], LAST, patch)


def test_sliders_and_methods_by_mouse(opened):
    from selenium.webdriver import ActionChains

    def drag(name, share):
        """The thumb from where it is to a share of the slider's length."""
        slider = one(opened, f"#{name}")
        opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", slider)
        width, most = slider.size["width"] - 16, int(slider.get_attribute("max"))
        at = int(slider.get_attribute("value")) / most
        chain = (
            ActionChains(opened, duration=20)
            .move_to_element_with_offset(slider, round(width * (at - 0.5)), 0)
            .click_and_hold()
        )
        chain.move_by_offset(round(width * (share - at)), 0).release().perform()

    for at, method in enumerate(METHODS):
        one(opened, f'#methods input[value="{at}"] + span').find_element("xpath", "..").click()
        drag("ratio", 1)
        drag("layer", 4 / (LAST + 1))
        check_state(opened, method, RATIOS[1], 3)
        drag("ratio", 0)
        drag("layer", 5 / (LAST + 1))
        check_state(opened, method, RATIOS[0], 4)


def test_answers_stand_beside_each_other(opened):
    assert said(opened, "#question q") == ASKED.question
    for method, ratio in itertools.product(METHODS, RATIOS):
        choose(opened, method, ratio)
        assert said(opened, "#truth") == "3"
        assert said(opened, "#answer-all") == "3 ✓ right"
        assert said(opened, "#answer-name") == f"With {method}, keep ratio {ratio}"
        assert said(opened, "#answer-reduced") == f"{method} at {ratio} {'✓ right' if ratio > 0.3 else '✗ wrong'}"


def test_the_staircase_says_and_draws_what_is_left(opened):
    for method, ratio in itertools.product(METHODS, RATIOS):
        choose(opened, method, ratio, 2)
        left = [reduction.kept.shape[1] - 1 for reduction in GIVEN[method, ratio].reductions]
        words = one(opened, "#stairs").get_attribute("aria-label")
        assert [int(number) for number in re.findall(r"(\d+) (?:at the start|after)", words)] == [PATCHES, *left]
        assert opened.execute_script(
            "return [document.querySelector('#stairs .here').getAttribute('x1'), "
            "document.querySelectorAll('#stairs .other-line').length]"
        ) == ["3", 2]
        (path,) = {line.get_attribute("d") for line in opened.find_elements("css selector", "#stairs .own-line")}
        top = float(one(opened, "#stairs").get_dom_attribute("viewBox").split()[3])
        drawn = [round(top - float(y)) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", path)]
        assert drawn == [PATCHES, PATCHES, left[0], left[0], left[1], *[left[2]] * 3]


def test_nothing_is_wider_than_the_window_and_the_picture_is_whole(opened, tmp_path):
    cell(opened, 20).click()
    wide, inner = opened.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert wide <= inner
    box = opened.execute_script(
        "const box = document.querySelector('#drawing').getBoundingClientRect(); "
        "return [box.left, box.right, box.width / box.height]"
    )
    assert box[0] >= 0 and box[1] <= inner
    assert box[2] == pytest.approx(WIDTH / HEIGHT, rel=0.01)
    cover = opened.execute_script("""
        const centre = (selector) => {
          const box = document.querySelector(selector).getBoundingClientRect();
          return [box.x + box.width / 2, box.y + box.height / 2];
        };
        const [button, drawn] = [centre('[data-patch="20"]'), centre("#drawing .selected")];
        return [button[0] - drawn[0], button[1] - drawn[1]];
    """)
    assert cover == pytest.approx([0, 0], abs=1.5)  # buttons lie over their patches
    assert opened.save_screenshot(str(tmp_path / "page.png"))


def test_screen_readers_get_names_and_values(opened):
    choose(opened, "topk", RATIOS[1])
    tree = opened.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    named = {(node["role"]["value"], node.get("name", {}).get("value", "")) for node in tree if not node["ignored"]}
    roles = {role: {name for kind, name in named if kind == role} for role, _ in named}
    assert roles["slider"] == {"Keep ratio", "After layer"}
    assert roles["radio"] == set(METHODS)
    assert len(roles["gridcell"]) == PATCHES
    gone = next(at for at, holder in enumerate(holders(GIVEN["topk", RATIOS[1]].reductions[-1])) if holder < 0)
    assert any(name.startswith(f"Row {gone // WIDTH}, column {gone % WIDTH}. Dropped") for name in roles["gridcell"])
    assert opened.execute_script("return document.documentElement.lang") == "en"
    assert all(name for kind, name in named if kind in ("button", "slider", "radio", "gridcell", "grid", "image"))


@pytest.mark.parametrize(("scheme", "bright"), [("light", True), ("dark", False)])
def test_light_and_dark_can_be_read(driver, address, scheme, bright):
    browsers.resize(driver, 1280, scheme=scheme)
    driver.get(address)

    def brightness(colour):
        """Relative luminance, as WCAG 2 defines it."""
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def style(selector, name):
        return driver.execute_script(
            "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]", selector, name
        )

    ground = brightness(style("body", "backgroundColor"))
    assert (ground > 0.5) == bright
    card = brightness(style(".card", "backgroundColor"))
    for selector in ("body", ".hint", "dt", "th", ".right"):
        for behind in (ground, card):
            low, high = sorted((brightness(style(selector, "color")), behind))
            assert (high + 0.05) / (low + 0.05) >= 4.5, selector


def test_a_pair_that_cannot_be_run_says_why(driver, tmp_path):
    given = [run for run in runs() if (run.method, run.keep_ratio) != ("mixed", 0.2)]
    given.append(page.Run("mixed", 0.2, refused="r must be at most 3 in layer 2"))
    page.save(document(given, selected=9), tmp_path / "page.html")
    browsers.resize(driver, 1280)
    driver.get((tmp_path / "page.html").as_uri())
    check_patch(driver, "ficoco-v", RATIOS[0], LAST, 9)  # selected from the start
    assert not one(driver, "#refusal").is_displayed()
    choose(driver, "mixed", 0.2)
    assert said(driver, "#refusal") == "mixed cannot be run at keep ratio 0.2: r must be at most 3 in layer 2"
    assert said(driver, "#ratio-value") == "0.2: not possible"
    assert said(driver, "#answer-reduced") == "not possible, see above"
    assert not one(driver, "#counts").is_displayed()
    choose(driver, "mixed", 0.5)
    check_state(driver, "mixed", 0.5, LAST)
    assert browsers.complaints(driver) == []


def test_hostile_text_is_only_text(driver, tmp_path):
    text = "</script><script>window.broken = 1</script><!-- <b>\u2028</b> <img src=x onerror='window.broken = 2'>"
    given = [page.Run(text, run.keep_ratio, run.reductions, run.layers, page.Answer(text)) for run in runs()[:2]]
    made = document(given, about=text, asked=page.Asked(text, page.Answer(text), text))
    page.save(made, tmp_path / "page.html")
    driver.get((tmp_path / "page.html").as_uri())
    shown, broken, made_of_it = driver.execute_script("""
        const texts = [...document.querySelectorAll("q, #truth, #answer-all, #answer-reduced, #methods span")];
        return [texts.map((one) => one.firstChild.textContent), typeof window.broken,
          document.querySelectorAll("img, b script").length];
    """)
    assert shown == [text] * 5
    assert (broken, made_of_it) == ("undefined", 0)
    assert browsers.complaints(driver) == []


def test_the_policy_is_in_force(driver, address):
    """Otherwise a page that asks for nothing would prove nothing."""
    driver.get(address)
    browsers.complaints(driver)
    refused = driver.execute_async_script("""
        const done = arguments[0], met = [];
        document.addEventListener("securitypolicyviolation", (event) => {
          met.push(event.effectiveDirective);
          if (met.length === 3) done(met.sort());
        });
        const image = document.createElement("img");
        image.src = "http://127.0.0.1:9/x.png";
        const script = document.createElement("script");
        script.textContent = "window.broken = 1";
        document.body.append(image, script);
        fetch("http://127.0.0.1:9/").catch(() => {});
    """)
    assert refused == ["connect-src", "img-src", "script-src-elem"]
    assert driver.execute_script("return typeof window.broken") == "undefined"
    assert len(browsers.complaints(driver)) >= 3  # what the other tests would see
