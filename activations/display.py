"""How results show themselves in a notebook."""

from collections.abc import Iterable, Sequence

_TABLE = """\
<table>
<caption>{{ caption }}</caption>
<thead><tr>{% for name in columns %}<th>{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody>
</table>"""


def html_table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A small HTML table; whatever stands in it is escaped, and numbers are shortened to four digits.

    Args:
        caption: What the table holds.
        columns: Heads of the columns.
        rows: Cells, row by row.
    """
    from jinja2 import Environment

    shown = [[_cell(value) for value in row] for row in rows]
    return Environment(autoescape=True).from_string(_TABLE).render(caption=caption, columns=columns, rows=shown)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
