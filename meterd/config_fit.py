"""Whether settings fit each other that are each right.

What is missing or wrong by itself is left out of what comes here, and nothing is said of it again.

>>> from meterd.config_tables import Reader
>>> reader = Reader({"gpio": {"case_switch": 17, "relay": 17}}, "meterd.toml")
>>> pins = reader.table("gpio")
>>> _ = check_fit(reader, meter={}, board={}, clamps=[], network={}, gpio=pins, anchor={})
>>> [str(mistake) for _, mistake in reader.found]
['gpio.relay: GPIO 17 is gpio.case_switch too']
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meterd.config_rules import offsets_s
from meterd.metering.board import LAYOUTS, channels, measurable_channels

if TYPE_CHECKING:
    from meterd.config_lines import Place
    from meterd.config_tables import Reader

READINGS_MIN = 3  # in an interval: fewer are a gap each
QUARTER_S = 900  # every zone's offset is a multiple of it since 1972
INTERVAL_S_DEFAULT = 1800  # what utilities read meters by
POLLING_MS_DEFAULT = 5000
LAYOUT_DEFAULT = "rpict3v1"
GPIO_PINS = ("case_switch", "magnet", "led", "button", "relay")  # the keys of [gpio] that are pins
GPIO_UART = (14, 15)
GPIO_ONE_WIRE = 4
GPIO_PULLED_UP = (2, 3)  # by resistors on every Pi, for I2C
GPIO_PULLED_DOWN = 9  # at power-on the chip pulls 0 to 8 up and these up to 27 down
GPIO_PINS_OTHER = 28  # from here on: a compute module's, each with a pull of its own


def check_fit(
    reader: Reader,
    *,
    meter: dict[str, Any],
    board: dict[str, Any],
    clamps: list[dict[str, Any]],
    network: dict[str, Any],
    gpio: dict[str, Any],
    anchor: dict[str, Any],
) -> tuple[tuple[str, ...], ...]:
    """Tell `reader` of what does not fit, and return what a line of the board may hold.

    Args:
        reader: Knows what else stood in the tables.
        meter: The good values of this table; of the others likewise.
        board: Its port, layout, cadence.
        clamps: In order.
        network: Its brokers, and the files for TLS.
        gpio: The pins.
        anchor: The timestamp authority.

    Returns:
        The fields of a line, in each form that there may be; nothing where a mistake keeps them
        from being known.
    """
    check_network(reader, network)
    if anchor.get("url") and not anchor.get("ca"):
        hint = "get the authority's root certificates, and compare them with another source"
        reader.wrong(("anchor", "ca"), "is missing: by it a timestamp is verified", hint)
    _check_gpio(reader, gpio, board)
    alternatives = _alternatives(reader, board)
    _check_interval(reader, meter, board)
    if board.get("port") == "/dev/serial0":
        problem = "which port serial0 stands for differs: on a Pi 5 it is the debug header"
        reader.wrong(("board", "port"), problem, 'name it: "/dev/ttyAMA0"', warning=True)
    _check_clamps(reader, clamps, alternatives)
    return alternatives


def _check_gpio(reader: Reader, gpio: dict[str, Any], board: dict[str, Any]) -> None:
    """Check the pins against each other and against what else has them."""
    owners: dict[int, str] = {}
    if "reset_gpio" in board:
        owners[board["reset_gpio"]] = "board.reset_gpio"
    for key in (key for key in GPIO_PINS if key in gpio):
        pin, place = gpio[key], ("gpio", key)
        owner = owners.setdefault(pin, f"gpio.{key}")
        if owner != f"gpio.{key}":
            reader.wrong(place, f"GPIO {pin} is {owner} too", "each needs a pin of its own")
        elif pin in GPIO_UART:
            problem = f"GPIO {pin} is the serial port's, which the board speaks on"
            reader.wrong(place, problem, "wire it to another pin")
        elif pin == GPIO_ONE_WIRE:
            problem = f"GPIO {pin} is the 1-Wire bus where dtoverlay=w1-gpio is set"
            hint = "wire it to another pin, or leave 1-Wire off in /boot/firmware/config.txt"
            reader.wrong(place, problem, hint, warning=True)
    for key, of in (("case_open", "case_switch"), ("relay_closed", "relay")):
        if key in gpio and not reader.has("gpio", of):
            problem = f"says nothing without gpio.{of}"
            reader.wrong(("gpio", key), problem, f"set {of}, or take it out", warning=True)
    if gpio.get("case_open") == "low" and gpio.get("case_switch") in GPIO_PULLED_UP:
        problem = (
            f"GPIO {gpio['case_switch']} has a resistor to 3.3 V on the Pi: it cannot rest low"
        )
        reader.wrong(("gpio", "case_open"), problem, 'wire it to another pin, or set "high"')
    _warn_of_boot(reader, gpio)


def _warn_of_boot(reader: Reader, gpio: dict[str, Any]) -> None:
    """Until the meter runs, a pin is an input with the pull that the chip gives it."""
    pin = gpio.get("relay", GPIO_PINS_OTHER)
    closed = gpio.get("relay_closed", "low")
    pulled = "high" if pin < GPIO_PULLED_DOWN else "low"
    if pin < GPIO_PINS_OTHER and closed != pulled:
        problem = (
            f"GPIO {pin} is pulled {pulled} while the Pi boots: the contact is open until then"
        )
        hint = 'a household keeps its power on a pin from 9 to 27 with relay_closed = "low"'
        reader.wrong(("gpio", "relay"), problem, hint, warning=True)


def check_network(reader: Reader, network: dict[str, Any]) -> None:
    """See that nothing is missing where a broker is reached by TLS."""
    tls = any(url.startswith("mqtts:") for url in network.get("brokers", ()))
    for key in ("ca", "certificate", "key"):
        if tls and not network.get(key):
            hint = "`meterctl broker-config ca request` makes key and request on this device"
            reader.wrong(("network", key), "is missing: a broker is reached by TLS", hint)


def _alternatives(reader: Reader, board: dict[str, Any]) -> tuple[tuple[str, ...], ...]:
    """Return what a line may hold; nothing where a mistake keeps it from being known."""
    if reader.has("board", "layout") and "layout" not in board:
        return ()
    layout = board.get("layout", LAYOUT_DEFAULT)
    if layout != "custom":
        if reader.has("board", "fields"):
            hint = 'remove it, or set layout = "custom"'
            reader.wrong(("board", "fields"), f"layout {layout} has fields of its own", hint)
        return LAYOUTS[layout]
    if not reader.has("board", "fields"):
        hint = 'as in fields = ["node", "RP1", "Irms1", "Vrms"]'
        reader.wrong(("board", "fields"), "is missing: layout custom needs it", hint)
    return (board["fields"],) if "fields" in board else ()


def _check_interval(reader: Reader, meter: dict[str, Any], board: dict[str, Any]) -> None:
    """Check the interval against what days, zones and the board's cadence ask of it."""
    place = ("meter", "interval_s")
    if "interval_s" not in meter and reader.has(*place):
        return
    interval_s = meter.get("interval_s", INTERVAL_S_DEFAULT)
    polling_ms = board.get("polling_ms", POLLING_MS_DEFAULT)
    zone = meter.get("zone", "UTC")
    odd_s = [offset_s for offset_s in offsets_s(zone) if offset_s % interval_s]
    if odd_s:
        problem = f"{interval_s} does not divide the offset of {zone} from UTC, {odd_s[0]} s"
        reader.wrong(place, problem, f"{QUARTER_S} divides every zone's")
    elif QUARTER_S % interval_s and interval_s % QUARTER_S:
        problem = f"{interval_s} s do not fit quarters of an hour, which zones and tariffs count in"
        hint = f"take a divisor or a multiple of {QUARTER_S}"
        reader.wrong(place, problem, hint, warning=True)
    if interval_s * 1000 < READINGS_MIN * polling_ms:
        problem = f"an interval of {interval_s} s has fewer than {READINGS_MIN} readings"
        hint = "poll more often, or take a longer interval"
        reader.wrong(("board", "polling_ms"), problem, hint, warning=True)


def _check_clamps(
    reader: Reader, clamps: list[dict[str, Any]], alternatives: tuple[tuple[str, ...], ...]
) -> None:
    """Check the clamps against each other and against what the board's lines hold."""
    numbers: dict[str, int] = {}
    channels_max = min(map(channels, alternatives), default=len(clamps))
    for k, clamp in enumerate(clamps):
        number, place = k + 1, ("clamp", k)
        first = numbers.setdefault(clamp.get("name", str(place)), number)
        if first != number:
            reader.wrong((*place, "name"), f"clamp {first} has that name", "each needs its own")
        if number > channels_max:
            problem = f"the layout has no more than {channels_max} channels"
            reader.wrong(place, problem, "remove it, or set the layout that the board sends")
        elif clamp.get("role", "unused") == "unused":
            continue
        elif not all(number in measurable_channels(fields) for fields in alternatives):
            problem = f"no field of the layout measures channel {number}"
            reader.wrong(place, problem, 'set role = "unused"')
        elif alternatives and not any(f"RP{number}" in fields for fields in alternatives):
            _warn_of_direction(reader, clamp, place)
    roles = [clamp.get("role") for clamp in clamps]
    if clamps and "mains" not in roles and None not in roles:
        reader.wrong(("clamp",), "no clamp has the role mains", "one is round the mains cable")


def _warn_of_direction(reader: Reader, clamp: dict[str, Any], place: Place) -> None:
    """Only real power has a sign."""
    if clamp.get("reversed"):
        problem = "no direction is measured on this channel: export cannot be seen"
        hint = "set it to false; only a board with a voltage adaptor tells the direction"
        reader.wrong((*place, "reversed"), problem, hint, warning=True)
    elif clamp.get("role") == "mains":
        problem = "no direction is measured on this channel: export is counted as import"
        hint = "where the house feeds into the grid, take a board with a voltage adaptor"
        reader.wrong((*place, "role"), problem, hint, warning=True)
