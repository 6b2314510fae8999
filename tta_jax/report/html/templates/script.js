'use strict';

// Tables that sort by a click on a header. Without this script they are as written.

const collator = new Intl.Collator('en', {numeric: true});

// What a cell is sorted by; NaN and '' are blanks.
function sortKey(cell, numeric) {
  if (!numeric) return cell.textContent;
  return 'v' in cell.dataset ? Number(cell.dataset.v) : NaN;
}

function isBlank(key) {
  return typeof key === 'number' ? Number.isNaN(key) : key === '';
}

function compareKeys(a, b) {
  if (typeof a === 'number') return a < b ? -1 : a > b ? 1 : 0;
  return collator.compare(a, b);
}

// Blanks are last in either order.
function sortRows(body, column, numeric, ascending) {
  const rows = [...body.rows].map(row => [sortKey(row.cells[column], numeric), row]);
  rows.sort(([a], [b]) => {
    if (isBlank(a) || isBlank(b)) return isBlank(a) - isBlank(b);
    return ascending ? compareKeys(a, b) : compareKeys(b, a);
  });
  body.append(...rows.map(([, row]) => row));
}

// The first click on a column of numbers shows the largest first, on text A first.
function isNextAscending(header, numeric) {
  const current = header.getAttribute('aria-sort');
  return current === 'none' ? !numeric : current === 'descending';
}

function makeSortable(table) {
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => {
    const numeric = header.classList.contains('number');
    const button = document.createElement('button');
    button.type = 'button';
    button.append(...header.childNodes);
    header.append(button);
    header.setAttribute('aria-sort', 'none');
    button.addEventListener('click', () => {
      const ascending = isNextAscending(header, numeric);
      for (const other of headers) other.setAttribute('aria-sort', 'none');
      header.setAttribute('aria-sort', ascending ? 'ascending' : 'descending');
      sortRows(table.tBodies[0], column, numeric, ascending);
    });
  });
}

document.querySelectorAll('table.sorts').forEach(makeSortable);
