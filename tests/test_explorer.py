"""The explorer: nothing fetched, the bench's own numbers, and in Chromium the values that Python computes."""

import base64
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from test_report import Tree
from test_tables import NAMES, record, store

from dualppo.bench.candidates import STRESS
from dualppo.bench.env import make_envs
from dualppo.bench.features import load_features
from dualppo.bench.masking import mask_logits
from dualppo.cli import main
from dualppo.exact.metrics import evaluate
from dualppo.papers.tables import records_at, shown_folder
from dualppo.show import explorer
from dualppo.show.report import PAGE_BEGINS

PUBLISHED = Path(__file__).parents[1] / "outputs" / "published"
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
REQUIRED = os.environ.get("DUALPPO_BROWSER") == "required"
OPTIONS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)


@pytest.fixture(scope="module")
def bench():
    features = load_features()
    env = make_envs(features, STRESS, seed=0).test
    return env, explorer.arrays(env, features)


@pytest.fixture(scope="module")
def page(bench, tmp_path_factory):
    path = tmp_path_factory.mktemp("explorer") / "explorer.html"
    hostile = [{"name": "</script><b>&", "help": 0.5, "harm": 0.1}]
    path.write_text(explorer.explorer_page(bench[1], hostile), encoding="utf-8")
    return path


def test_the_page_fetches_nothing_is_small_and_escapes(page):
    text = page.read_text(encoding="utf-8")
    tree = Tree(text)
    assert not tree.fetched or tree.fetched == ["data:,"]
    assert not tree.open and not tree.handlers and len(tree.ids) == len(set(tree.ids))
    assert len(text.encode()) < 600_000 and "http" not in re.sub(r"http://www\.w3\.org/2000/svg|http-equiv", "", text)
    assert "</script><b>" not in text


def test_every_published_dot_has_its_name_as_text(page):
    table = re.search(r'<details id="marks">.*?</details>', page.read_text(encoding="utf-8"), re.S)[0]
    assert "&lt;/script&gt;&lt;b&gt;&amp;</th><td>0.500</td><td>0.100</td>" in table


def test_report_writes_and_links_it_only_for_runs_on_the_packages_features(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(explorer, "explorer_page", lambda known, shown: f"{PAGE_BEGINS}{len(shown)} marks")
    store(elsewhere := tmp_path / "elsewhere", [record(n, s) for n in NAMES for s in ("clean", "stress")])
    (kept := tmp_path / "shipped/runs/custom/stress").mkdir(parents=True)
    for name in ("random", "similarity"):
        shutil.copy(PUBLISHED / f"runs/paper/stress/{name}.json", kept)
    for outputs, shipped in ((elsewhere, False), (tmp_path / "shipped", True)):
        assert main(["report", "--outputs", str(outputs)]) == 0
        assert (outputs / "explorer.html").is_file() == shipped == ("explorer.html" in capsys.readouterr().out)
        assert ('href="explorer.html"' in (outputs / "report.html").read_text(encoding="utf-8")) == shipped
    assert (outputs / "explorer.html").read_text(encoding="utf-8").endswith("2 marks")


def test_the_numbers_are_the_benchs(page, bench):
    env, known = bench
    data = json.loads(re.search(r'id="data">(.*?)</script>', page.read_text(encoding="utf-8"), re.S)[1])
    for name in ("help", "harm", "mask", "close"):
        numbers = np.frombuffer(base64.b64decode(data["bench"][name]), "<f4").reshape(env.cand.shape)
        assert np.array_equal(numbers, known[name].numpy())
    assert torch.equal(1 - known["harm"], env.column("safe"))


def parts(text: str) -> tuple[str, dict]:
    "A page without its data, and the data."
    found = re.search(r'(?<=id="data">).*?(?=</script>)', text, re.S)
    return text.replace(found[0], ""), json.loads(found[0])


def test_the_published_page_is_what_the_code_gives(bench):
    shown = explorer.marks(records_at(PUBLISHED, shown_folder(PUBLISHED)), load_features().sha256)
    (frame, now), (old_frame, old) = (
        parts(text)
        for text in (
            explorer.explorer_page(bench[1], shown),
            (PUBLISHED / "explorer.html").read_text(encoding="utf-8"),
        )
    )
    assert frame == old_frame and now["marks"] == old["marks"] and now["dialogues"] == old["dialogues"]
    for place in ("bench", "told"):
        for name in ("help", "harm", "mask", "close"):
            new, kept = (np.frombuffer(base64.b64decode(d[place][name]), "<f4") for d in (now, old))
            assert np.allclose(new, kept, atol=1e-5), (place, name)  # as near as two processors bring them


def test_the_default_is_the_masked_ranking_of_the_library(bench):
    env, known = bench
    log_probs = mask_logits(40 * known["close"], env.allowed).log_softmax(1)
    whole, ours = evaluate(log_probs, env), explorer.exact_values(known, 0.5, 0.5, 40, 0)
    pairs = [("help", "help"), ("p_harm", "harm"), ("average_reward", "reward")]
    assert all(abs(whole[a] - ours[b]) < 1e-5 for a, b in pairs) and ours["kl"] == 0


@pytest.fixture(scope="module")
def browser(page, tmp_path_factory):
    if not (BROWSER and DRIVER):
        (pytest.fail if REQUIRED else pytest.skip)("there is no Chromium with its driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for one in (*OPTIONS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(one)
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    driver.get(page.as_uri())
    yield driver
    driver.quit()


def moved(browser, **steps: int) -> dict[str, float]:
    "What the page shows after arrow keys, so many steps on each slider."
    for name, n in steps.items():
        key = "\ue014" if n > 0 else "\ue012"
        browser.find_element("id", name).send_keys(key * abs(n))
    browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
    return {i: float(browser.find_element("id", i).get_attribute("data-exact")) for i, _ in explorer.VALUES}


@pytest.mark.parametrize("width", [360, 1200])
def test_arrow_keys_give_pythons_values(browser, bench, width):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.refresh()
    at = {"alpha": 50, "tau": 50, "kappa": 40, "strength": 0}
    for steps in ({}, {"strength": 30}, {"alpha": 20, "tau": 45}, {"kappa": -35, "tau": -94}, {"alpha": -70}):
        seen = moved(browser, **steps)
        at = {name: n + steps.get(name, 0) for name, n in at.items()}
        alpha, tau, kappa, strength = at["alpha"] / 100, at["tau"] / 100, at["kappa"], at["strength"] ** 2 / 50
        expected = explorer.exact_values(bench[1], alpha, tau, kappa, strength)
        assert seen == pytest.approx(expected, abs=1e-6), (width, at)
        assert "\u22120.000" not in browser.find_element("id", "values").text
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(browser, scheme):
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    colours = browser.execute_script("""
      const rgb = text => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
      const style = (id, key) => rgb(getComputedStyle(document.querySelector(id))[key]);
      return [[style("body", "color"), style("body", "backgroundColor")],
              [style(".slider p", "color"), style("body", "backgroundColor")],
              [style("#replies small", "color"), style("#replies li", "backgroundColor")]];""")

    def light(rgb):
        return sum(
            w * (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4)
            for w, c in zip((0.2126, 0.7152, 0.0722), (v / 255 for v in rgb))
        )

    for text, ground in colours:
        high, low = sorted((light(text), light(ground)), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5, (scheme, text, ground)


def test_a_slider_that_is_dragged_gives_pythons_values(browser, bench):
    from selenium.webdriver import ActionChains

    size = {"width": 1200, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.refresh()
    at = {"alpha": 0.5, "tau": 0.5, "kappa": 40.0, "strength": 0.0}
    for name, by in (("strength", 60), ("alpha", -40), ("tau", 25)):
        slider = browser.find_element("id", name)
        low, high = (float(slider.get_attribute(end)) for end in ("min", "max"))
        width = slider.rect["width"] - 16  # the middle of the handle does not reach the ends
        grip = round(((at[name] - low) / (high - low) - 0.5) * width)
        mouse = ActionChains(browser).move_to_element_with_offset(slider, grip, 0).click_and_hold()
        mouse.move_by_offset(by, 0).release().perform()
        now = float(slider.get_attribute("value"))
        assert (now - at[name]) * by > 0, f"{name} was dragged by {by} and went from {at[name]} to {now}"
        at[name] = now
        expected = explorer.exact_values(bench[1], at["alpha"], at["tau"], at["kappa"], at["strength"] ** 2 / 50)
        assert moved(browser) == pytest.approx(expected, abs=1e-6), at


@pytest.mark.parametrize("wish, moves", [("reduce", False), ("no-preference", True)])
def test_nothing_glides_for_who_wants_no_motion(browser, wish, moves):
    media = {"features": [{"name": "prefers-reduced-motion", "value": wish}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    gliding = """return [...document.querySelectorAll("*")].filter(e => {
      const s = getComputedStyle(e);
      return s.animationName != "none" || s.transitionDuration.split(",").some(t => parseFloat(t) > 0);
    }).length"""
    assert (browser.execute_script(gliding) > 0) is moves
