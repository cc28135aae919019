"""The pages on which a user of the lab's directory signs in with a browser. Every text is escaped."""

import base64
import hashlib
import html
from collections.abc import Mapping

from starlette.responses import HTMLResponse

_SUBMIT = "document.forms[0].submit()"
_SUBMIT_HASH = base64.b64encode(hashlib.sha256(_SUBMIT.encode()).digest()).decode()
_STYLE = (
    ":root{color-scheme:light dark;background:Canvas;color:CanvasText}"
    "body{font:1rem/1.5 system-ui,sans-serif;max-width:26rem;margin:3rem auto;padding:0 1rem;overflow-wrap:anywhere}"
    "label{display:block;margin:.75rem 0 0}"
    "input{font:inherit;width:100%;padding:.4rem;box-sizing:border-box}"
    "button{font:inherit;margin:1rem .5rem 0 0;padding:.4rem 1rem;min-height:2.25rem}"
    ".error{border-left:4px solid #c62828;padding-left:.75rem}"
)
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; script-src 'sha256-{_SUBMIT_HASH}'; "
    "img-src data:; frame-ancestors 'none'; base-uri 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # without any referrer, forms would be sent with `Origin: null`
    "Cache-Control": "no-store",
}
_TITLE = "Sign in to the lab"
_USER, _PASSWORD = 'autocomplete="username"', 'type="password" autocomplete="current-password"'


def form(explanation: str, fields: Mapping[str, str], error: str = "") -> HTMLResponse:
    """Return the form for a user's name and password, and for a device's code if `fields` has one, even an empty one.

    `fields` are what it is filled in with; `error` says why the last attempt failed.
    """
    inputs = []
    if "user_code" in fields:
        inputs.append(_input("user_code", "Code", fields["user_code"], 'autocomplete="off"'))
    inputs.append(_input("username", "User", fields.get("username", ""), _USER))
    inputs.append(_input("password", "Password", "", _PASSWORD))
    content = (
        f"<p>{html.escape(explanation)}</p>"
        + (f'<p class="error" role="alert">{html.escape(error)}</p>' if error else "")
        + f'<form method="post">{"".join(inputs)}<button name="answer" value="sign-in">Sign in</button>'
        '<button name="answer" value="decline" formnovalidate>Cancel</button></form>'
    )
    return _page(content, 400 if error else 200)


def message(text: str, status: int = 200) -> HTMLResponse:
    """Return a page that says how it ended."""
    return _page(f"<p>{html.escape(text)}</p>", status)


def posting(url: str, fields: Mapping[str, str]) -> HTMLResponse:
    """Return a page that has the browser post fields to a URL: `response_mode=form_post`."""
    inputs = "".join(
        f'<input type="hidden" name="{html.escape(name)}" value="{html.escape(value)}">'
        for name, value in fields.items()
    )
    content = f'<form method="post" action="{html.escape(url)}">{inputs}<button>Continue</button></form>'
    return _page(f"{content}<script>{_SUBMIT}</script>", 200)


def _input(name: str, label: str, value: str, attributes: str) -> str:
    return f'<label>{label}<input name="{name}" value="{html.escape(value)}" required {attributes}></label>'


def _page(content: str, status: int) -> HTMLResponse:
    text = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{_TITLE}</title>'
        '<link rel="icon" href="data:,">'  # otherwise browsers ask for one, and the log would have it
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>'
        f"<body><h1>{_TITLE}</h1>{content}</body></html>"
    )
    return HTMLResponse(text, status, _HEADERS)
