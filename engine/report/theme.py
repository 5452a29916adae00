"""The look of a report: the style sheet, and the colours that drawings share with it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Palette:
    """Colours of a page and of the drawings on it, as #rrggbb."""

    paper: str
    card: str
    ink: str
    muted: str
    rule: str
    accent: str
    second: str


LIGHT = Palette("#fbfaf7", "#ffffff", "#1d2126", "#69707a", "#e2dfd7", "#0b6e6e", "#c4622d")
DARK = Palette("#14171a", "#1b1f23", "#e7e5df", "#98a0a8", "#2f353b", "#4fc3bd", "#f0955b")


def _variables(palette: Palette) -> str:
    return "".join(f"--{name}:{value};" for name, value in vars(palette).items())


CSS = (
    f":root{{{_variables(LIGHT)}}}"
    f"@media (prefers-color-scheme: dark){{:root{{{_variables(DARK)}}}}}"
    """
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
  font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:62rem;margin:0 auto;padding:3rem 1.5rem 4rem}
header{border-bottom:2px solid var(--ink);padding-bottom:1.1rem;margin-bottom:1.8rem}
h1{font:600 2.1rem/1.15 Charter,"Bitstream Charter","Iowan Old Style",Georgia,serif;margin:0 0 .5rem;
  letter-spacing:-.01em}
h2{font:600 1.3rem/1.25 Charter,"Bitstream Charter","Iowan Old Style",Georgia,serif;margin:2.6rem 0 .7rem}
.lead{margin:0;color:var(--muted);max-width:46rem;font-size:1.05rem}
p{max-width:46rem;margin:.4rem 0 1rem}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(11.5rem,1fr));gap:.8rem;margin:1rem 0}
.tile{background:var(--card);border:1px solid var(--rule);border-radius:.5rem;padding:.9rem 1rem}
.tile b{display:block;font-size:1.75rem;line-height:1.15;font-weight:600;color:var(--accent);
  font-variant-numeric:tabular-nums}
.tile span{display:block;font-size:.92rem;margin-top:.25rem}
.tile small,figcaption,caption,footer{color:var(--muted);font-size:.85rem}
figure{margin:1rem 0}
figcaption{margin-top:.5rem;max-width:46rem}
figure picture img{display:block;width:100%;height:auto}
.scroll{overflow:auto;max-height:44rem;background:var(--card);border:1px solid var(--rule);
  border-radius:.5rem;padding:.35rem 1rem .6rem;margin:1rem 0}
table{border-collapse:collapse;width:100%;font-size:.95rem}
caption{caption-side:bottom;text-align:left;padding-top:.6rem}
th,td{padding:.42rem .9rem .42rem 0;border-bottom:1px solid var(--rule);text-align:left;
  vertical-align:top;font-weight:400}
thead th{color:var(--muted);font-size:.85rem;border-bottom:1px solid var(--ink);position:sticky;top:-.35rem;
  background:var(--card)}
tbody tr:last-child>*{border-bottom:0}
tbody th{white-space:nowrap}
td,thead th:not(:first-child){text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap;
  padding:.42rem .3rem .42rem .7rem}
dl{columns:17rem auto;column-gap:2.2rem;background:var(--card);border:1px solid var(--rule);
  border-radius:.5rem;padding:.5rem 1rem;margin:.6rem 0 1.2rem;font-size:.88rem}
dl div{display:flex;justify-content:space-between;gap:1rem;padding:.22rem 0;break-inside:avoid;
  border-bottom:1px solid var(--rule)}
dt{color:var(--muted)}
table.text td,table.text thead th:not(:first-child){text-align:left;white-space:normal}
dd{margin:0;text-align:right;overflow-wrap:anywhere;font-family:ui-monospace,Menlo,Consolas,monospace;
  font-size:.82rem}
pre{overflow-x:auto;background:var(--card);border:1px solid var(--rule);border-radius:.5rem;
  padding:.8rem 1rem;font:.82rem/1.6 ui-monospace,Menlo,Consolas,monospace}
.gallery{display:flex;flex-wrap:wrap;gap:.5rem}
.stack{display:flex;flex-direction:column;gap:.25rem}
.stack img{width:4rem;height:4rem;object-fit:contain;border-radius:.2rem;background:var(--card);
  image-rendering:pixelated;display:block}
.stack img:first-child{margin-bottom:.3rem}
.legend span{height:4rem;display:flex;align-items:center;color:var(--muted);font-size:.85rem;
  min-width:4.6rem}
.legend span:first-child{margin-bottom:.3rem}
table[data-sort] thead th{cursor:pointer}
th[aria-sort=descending]::after{content:" \\2193"}
th[aria-sort=ascending]::after{content:" \\2191"}
main img{cursor:zoom-in}
.sheet{display:flex;flex-wrap:wrap;gap:.3rem}
.sheet img{height:4.5rem;border-radius:.2rem}
#zoom{border:1px solid var(--rule);border-radius:.5rem;background:var(--paper);color:var(--muted);
  padding:.6rem;max-width:96vw;max-height:96vh;cursor:zoom-out}
#zoom img{display:block;max-width:90vw;max-height:84vh;object-fit:contain}
#zoom.small img{width:min(70vw,30rem);image-rendering:pixelated}
#zoom p{margin:.5rem 0 0;font-size:.85rem;overflow-wrap:anywhere}
#zoom::backdrop{background:rgba(0,0,0,.6)}
@media (max-width:40rem){figure picture{display:block;overflow-x:auto}figure picture img.wide{width:34rem}
  main{padding:1.2rem .8rem 2rem}h1{font-size:1.55rem;overflow-wrap:anywhere}
  .gallery{flex-wrap:nowrap;overflow-x:auto}.tiles{grid-template-columns:repeat(2,1fr)}
  .tile b{font-size:1.35rem}dl{columns:auto}.scroll{padding:.2rem .6rem .4rem}
  tbody th{white-space:normal;overflow-wrap:anywhere;min-width:6.5rem}
  figure:has(>svg){overflow-x:auto}figure>svg{min-width:34rem}
  figure picture,figure:has(>svg),.gallery,.scroll,pre{--under:var(--paper);background:
  linear-gradient(90deg,var(--under) 40%,transparent) local,
  linear-gradient(270deg,var(--under) 40%,transparent) 100% 0 local,
  linear-gradient(90deg,var(--muted),transparent) scroll,
  linear-gradient(270deg,var(--muted),transparent) 100% 0 scroll;
  background-size:2.5rem 100%,2.5rem 100%,.5rem 100%,.5rem 100%;background-repeat:no-repeat}
  .scroll,pre{--under:var(--card);background-color:var(--card)}}
footer{border-top:1px solid var(--rule);margin-top:3rem;padding-top:.8rem}
"""
)
