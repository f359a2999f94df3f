"""Pages in a browser without a network: Chromium, where there is one."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ph_l2o.reports import write_report
from tests.reports.conftest import HOSTILE, Made, comparison, suite
from tests.reports.test_pages import hostile

selenium = pytest.importorskip("selenium", reason="selenium is not installed")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium and chromedriver are not installed"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # selenium's sockets
]
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-default-apps",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)  # fmt: skip


class Browser:
    """A page that is open."""

    def __init__(self, driver: Any):
        self.driver = driver

    def open(self, path: Path, *, width: int = 1200, scheme: str = "light") -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        for kind in ("browser", "performance"):
            self.driver.get_log(kind)  # what came before
        self.driver.get(f"file://{path.absolute()}")

    def js(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    yield found
    found.quit()


@pytest.fixture
def browser(driver: Any) -> Browser:
    return Browser(driver)


FIRST_COLUMN = "return [...arguments[0].tBodies[0].rows].map(r => r.cells[0].textContent.trim())"
PIXELS = """
const c = document.querySelector('.plot canvas'), d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
const seen = new Set();
for (let k = 0; k < d.length; k += 4) if (d[k + 3] === 255) seen.add(d.slice(k, k + 3).join());
return [...seen];
"""


def rgb(color: str) -> str:
    return ",".join(str(int(color[k : k + 2], 16)) for k in (1, 3, 5))


@pytest.mark.parametrize("width", [1200, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_opens_without_errors_or_requests(browser: Browser, results: Made, width: int, scheme: str) -> None:
    path = write_report(results(suite_json=suite()))
    browser.open(path, width=width, scheme=scheme)
    assert browser.complaints() == []
    assert [u for u in browser.requests() if not u.startswith("data:")] == [f"file://{path}"]
    assert browser.js("return document.documentElement.scrollWidth") <= width, "the page is not wider than the screen"
    assert browser.js("return document.querySelectorAll('.plot canvas').length") >= 3
    ground = browser.js("return getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 23, 27)")
    assert rgb("#D55E00" if scheme == "light" else "#F28A3C") in browser.js(PIXELS)


def test_the_button_changes_the_theme_and_the_curves_with_it(browser: Browser, results: Made) -> None:
    browser.open(write_report(results()))
    browser.js("document.getElementById('theme').click()")
    assert browser.js("return getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"
    wait(browser, f"{PIXELS.replace('return [...seen];', '')} return seen.has('{rgb('#F28A3C')}')")
    browser.js("document.getElementById('theme').click()")
    assert browser.js("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def wait(browser: Browser, script: str) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser.driver, 60).until(lambda _: browser.js(script))


def test_columns_sort_with_the_keyboard(browser: Browser, results: Made) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    found = comparison()
    found["rows"][0]["final"]["mean"] = "inf"
    found["rows"][1]["final"]["mean"] = 10.0  # as texts, 10 would come before 9
    found["rows"][2]["final"]["mean"] = 9.0
    found["rows"][2]["accuracy"] = 0.5
    browser.open(write_report(results(comparison_json=found)))
    table = browser.driver.find_element(By.CSS_SELECTOR, "table.sortable")
    head = {b.text.strip("↕↑↓ "): b for b in table.find_elements(By.CSS_SELECTOR, "thead button")}
    head["mean [95 %]"].send_keys(Keys.ENTER)
    assert browser.js(FIRST_COLUMN, table) == ["adamw", "adam", "ours"]
    assert browser.js("return document.querySelector('[aria-sort]').getAttribute('aria-sort')") == "ascending"
    head["mean [95 %]"].send_keys(Keys.SPACE)
    assert browser.js(FIRST_COLUMN, table) == ["ours", "adam", "adamw"]
    for order in ("ascending", "descending"):
        head["accuracy"].send_keys(Keys.ENTER)
        assert browser.js(FIRST_COLUMN, table)[0] == "adamw", f"{order}: what is absent is last"


def test_curves_can_be_hidden_and_read_with_the_keyboard(browser: Browser, results: Made) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    browser.open(write_report(results()))
    plot = browser.driver.find_element(By.CSS_SELECTOR, ".plot")
    plot.send_keys(Keys.END)
    reading = "return document.querySelector('.reading').textContent"
    wait(browser, f"{reading} === 'inner step 2: ours 1, adam 2'")
    assert rgb("#0072B2") in browser.js(PIXELS)
    button = browser.driver.find_element(By.CSS_SELECTOR, ".legend button[data-name=adam]")
    button.send_keys(Keys.ENTER)
    assert button.get_attribute("aria-pressed") == "false"
    wait(browser, f"{PIXELS.replace('return [...seen];', '')} return !seen.has('{rgb('#0072B2')}')")
    plot.send_keys(Keys.HOME)
    wait(browser, f"{reading} === 'inner step 0: ours 3'")


def test_what_is_folded_opens_with_its_charts(browser: Browser, results: Made) -> None:
    browser.open(write_report(results(diagnostics_ours_csv="step,loss,lr/w,lr/b\n0,2,1,0.5\n1,1,1,0.5\n")))
    browser.js("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    wait(browser, "return document.querySelectorAll('details .plot canvas').length === 2")
    assert browser.complaints() == []


def test_an_attack_in_the_files_does_nothing(browser: Browser, results: Made) -> None:
    path = write_report(hostile(results))
    browser.open(path)
    browser.js("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert HOSTILE in browser.js("return document.title") and browser.complaints() == []
    assert HOSTILE in browser.js("return document.querySelector('.legend').textContent")
    # Even if the escaping failed, the page's policy would stop it.
    evil = path.with_name("unescaped.html")
    evil.write_text(path.read_text().replace("<main>", f"<main><script>document.title='owned'</script>{HOSTILE[9:]}"))
    browser.open(evil)
    assert browser.js("return document.title") != "owned" and "Content Security Policy" in " ".join(
        browser.complaints()
    )
