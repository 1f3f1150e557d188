-- Tables on their way from HTML to Markdown: columns of numbers to the right, widths left to the reader's screen.
local function text_of(cell)
  return pandoc.utils.stringify(cell.contents):gsub("^%s+", ""):gsub("%s+$", "")
end

local function is_number(text)
  return text:gsub("[%s,%%±()%[%]–…]", ""):gsub("NaN", "0"):match("^[-+−]?[%d.]+[eE]?[-+]?%d*[-–]?[%d.]*$") ~= nil
end

function Table(tbl)
  for column, spec in ipairs(tbl.colspecs) do
    local numbers, others = 0, 0
    for _, body in ipairs(tbl.bodies) do
      for _, row in ipairs(body.body) do
        local cell = row.cells[column]
        local text = cell and text_of(cell) or ""
        if text == "–" then
          numbers = numbers + 0.001 -- decides where there is nothing else
        elseif text ~= "" then
          if is_number(text) then numbers = numbers + 1 else others = others + 1 end
        end
      end
    end
    tbl.colspecs[column] = { numbers > others and pandoc.AlignRight or pandoc.AlignLeft, nil }
  end
  local function reset(rows)
    for _, row in ipairs(rows) do
      for _, cell in ipairs(row.cells) do cell.alignment = pandoc.AlignDefault end
    end
  end
  reset(tbl.head.rows)
  for _, body in ipairs(tbl.bodies) do reset(body.head); reset(body.body) end
  tbl.attr = pandoc.Attr()
  return tbl
end

function RawBlock() return {} end      -- its style sheet
function Div(div) return div.content end                 -- and the wrapper that pandas puts around them
