"""How the page looks: system fonts, contrast, visible focus, and nothing wider than a phone."""

import gradio as gr

HEAD = """<div class="vt-head"><h1>vitalk</h1>
<p>Vision transformers that see, speech models that talk, small enough for the machine you have.
Programs find the same behind <a href="/docs">the API</a>.</p></div>"""
CSS = """
.gradio-container { width: 100%; max-width: 1240px !important; margin: 0 auto; }
.html-container { padding: 0 !important; }
.vt-head h1 { font-size: 1.9rem; margin: .2rem 0; }
.vt-head p { margin: 0; color: var(--body-text-color); }
.vt-head a { margin: 0 !important; padding: 0 !important; text-decoration: underline; }
.vt-alert, .vt-status { margin: 0; padding: .6rem .8rem; border-radius: 6px; border-left: 5px solid; color: #1c1c1c; }
.vt-alert { background: #fde8e8; border-color: #b3261e; }
.vt-status { background: #e6f2ec; border-color: #1b6e43; }
.vt-figure { margin: 0; }
.vt-figure figcaption { font-size: .9rem; color: var(--body-text-color); padding-top: .3rem; }
.vt-wide { overflow-x: auto; max-width: 100%; }
.vt-wide img { max-width: none; display: block; border-radius: 6px; }
.vt-table { border-collapse: collapse; font-size: .9rem; color: var(--body-text-color); margin: .4rem 0; }
.vt-table caption { text-align: left; font-weight: 600; padding: .4rem 0; }
.vt-table th, .vt-table td { padding: .25rem .6rem; border: 1px solid var(--border-color-primary); text-align: right; }
.vt-table tbody th, .vt-table td { white-space: nowrap; }
.vt-table th:first-child { text-align: left; }
.vt-table tbody th { font-weight: 500; }
.vt-table thead th { background: var(--background-fill-secondary); vertical-align: bottom; font-weight: 600; }
.dark { --color-accent: var(--primary-400); }
.dark :focus-visible { outline-color: #fbbf24 !important; }
:focus-visible { outline: 3px solid #b45309 !important; outline-offset: 2px !important; }
"""


def theme() -> gr.themes.Base:
    """Gradio's own, with the fonts of whoever looks at it, and darker buttons, labels and hints."""
    return gr.themes.Default(
        primary_hue=gr.themes.colors.blue, font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    ).set(
        button_primary_background_fill="*primary_700", button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700", button_primary_text_color="white",
        block_info_text_color="*neutral_600", block_label_text_color="*neutral_700",
        block_title_text_color="*neutral_800", body_text_color_subdued="*neutral_600",
        color_accent="*primary_700",
    )  # fmt: skip
