-- What both ways of rendering do, for HTML and Typst: tables that fit, call-outs, links that lead somewhere. Quarto runs it
-- before its own filters, pandoc before filters.lua.
local typst = FORMAT == "typst"
local TITLES = { note = "Note", tip = "Tip", warning = "Warning", important = "Important", caution = "Caution" }

local function raw(text)
  return pandoc.RawBlock("typst", text)
end

-- Wide tables ------------------------------------------------------------------------------------------------------------------

local LINE, PADDING = 102, 3 -- what fits into a line of a table on A4, and the room between two columns, in characters
local SMALLEST, SENTENCES = 0.74, 0.9 -- the smallest factor; of sentences in few columns, which have room to wrap
local LONG = 15 -- rows from which a table may be broken over two pages

-- A name in a head may break after an underscore or a slash.
local function breakable(str)
  return pandoc.Str((str.text:gsub("[_/]", "%0\u{200b}")))
end

-- A number and its spread or interval may be torn apart between the two, and nowhere else.
local function keep_together(inlines)
  for i, inline in ipairs(inlines) do
    local before = inlines[i - 1]
    if inline.t == "Space" and before and before.t == "Str" and (before.text == "±" or before.text:match("^%[.*,$")) then
      inlines[i] = pandoc.Str("\u{a0}")
    end
  end
  return inlines
end

-- The longest text of each column, heads left out, in characters, and their sum.
local function text_widths(tbl)
  local longest, total = {}, 0
  for _, body in ipairs(tbl.bodies) do
    for _, row in ipairs(body.body) do
      for column, cell in ipairs(row.cells) do
        longest[column] = math.max(longest[column] or 0, pandoc.text.len(pandoc.utils.stringify(cell.contents)))
      end
    end
  end
  for _, length in pairs(longest) do total = total + length end
  return longest, total
end

-- A table wider than the page is set smaller, and columns get room by their longest word and their longest text.
-- Returns the factor for the text size.
local function fit_columns(tbl)
  local words, texts = {}, {}
  for column = 1, #tbl.colspecs do words[column], texts[column] = 2, 2 end
  local function measure(rows, weight)
    for _, row in ipairs(rows) do
      for column, cell in ipairs(row.cells) do
        local text = pandoc.utils.stringify(cell.contents)
        texts[column] = math.max(texts[column], weight * pandoc.text.len(text))
        for word in (weight > 1 and text:gsub("[_/]", "%0 ") or text):gmatch("%S+") do
          words[column] = math.max(words[column], weight * pandoc.text.len(word))
        end
      end
    end
  end
  measure(tbl.head.rows, 1.12) -- bold
  for _, body in ipairs(tbl.bodies) do measure(body.body, 1) end
  local least, most = 0, 0
  for column = 1, #tbl.colspecs do least, most = least + words[column] + PADDING, most + texts[column] + PADDING end
  if most <= LINE then return 1 end
  local scale = math.max(#texts < 6 and math.max(table.unpack(texts)) > 40 and SENTENCES or SMALLEST, LINE / most)
  local room = math.max(LINE / scale - least, 0)
  local total = math.max(LINE / scale, least)
  for column, spec in ipairs(tbl.colspecs) do
    local extra = most > least and room * (texts[column] - words[column]) / (most - least) or 0
    tbl.colspecs[column] = { spec[1], (words[column] + PADDING + extra) / total }
  end
  return math.max(0.55, math.min(scale, LINE / least))
end

local function count_rows(tbl)
  local rows = 0
  for _, body in ipairs(tbl.bodies) do rows = rows + #body.body end
  return rows
end

local function fit_table(tbl)
  local scale = typst and fit_columns(tbl) or 1
  local many = #tbl.colspecs > 7 -- of these, a number may stand above its spread; of fewer columns, none is broken
  local longest, total = text_widths(tbl)
  local wide = many or total > 80
  for _, row in ipairs(many and tbl.head.rows or {}) do
    for _, cell in ipairs(row.cells) do cell.contents = cell.contents:walk({ Str = breakable }) end
  end
  tbl = tbl:walk({ Inlines = keep_together })
  if typst then return { raw(("#fitted(%.2f, %s)["):format(scale, tostring(count_rows(tbl) > LONG))), tbl, raw("]") } end
  for _, row in ipairs(tbl.head.rows) do -- words and sentences get room
    for column, cell in ipairs(row.cells) do
      local words = tbl.colspecs[column][1] ~= pandoc.AlignRight and longest[column] or 0
      if words > 4 then cell.attributes.style = ("--words: %dch"):format(math.min(words, 30)) end
    end
  end
  local attributes = { tabindex = "0", role = "region", ["aria-label"] = "Table" }
  return pandoc.Div(tbl, pandoc.Attr("", { "table-scroll", wide and "wide" or "narrow", many and "many" or "few" }, attributes))
end

-- Call-outs --------------------------------------------------------------------------------------------------------------------

local function callout(div)
  for kind, title in pairs(TITLES) do
    if div.classes:includes("callout-" .. kind) then
      title = pandoc.Plain({ pandoc.Str(div.attributes.title or title) })
      if typst then
        local out = pandoc.List({ raw(('#callout("%s", ['):format(kind)), title, raw("])[") })
        out:extend(div.content)
        out:insert(raw("]"))
        return out
      end
      return pandoc.Div({ pandoc.Div({ title }, { class = "remark-title" }), table.unpack(div.content) }, pandoc.Attr("", { "remark", kind }, { role = "note" }))
    end
  end
end

-- Tall and wide figures --------------------------------------------------------------------------------------------------------

local TALL, WIDTH = 2.2, 6.45 -- inches: what moves to the top or bottom of a page, and the width of the text
local WIDE = 4.5 -- inches: what scrolls on a phone

-- Width and height of a picture in inches; 0 where there is no such file.
local function size_of(image)
  local folder = pandoc.path.directory(PANDOC_STATE.input_files[1] or "")
  local file = io.open(image.src, "rb") or io.open(pandoc.path.join({ folder, image.src }), "rb")
  local size = file and pandoc.image.size(file:read("a"))
  if file then file:close() end
  if not size or size.width == 0 then return 0, 0 end
  local width = tonumber((image.attributes.width or ""):match("^([%d.]+)in$")) or size.width / size.dpi_horz
  return width, width * size.height / size.width
end

local function mark_wide(image)
  if size_of(image) > WIDE then image.classes:insert("wide") end
  return image
end

-- The text after a tall figure fills the page that the figure did not fit on.
local function float_tall(figure)
  local height = 0
  figure:walk({
    Image = function(image)
      local wide, high = size_of(image)
      height = height + high * math.min(1, WIDTH / math.max(wide, 1))
    end,
  })
  if height > TALL then return { raw("#[#show figure: set figure(placement: auto)"), figure, raw("]") } end
end

-- References -------------------------------------------------------------------------------------------------------------------

local function add_references(doc)
  local cited = false
  doc:walk({
    Cite = function(cite)
      for _, citation in ipairs(cite.citations) do
        cited = cited or not (citation.id:match("^fig%-") or citation.id:match("^tbl%-"))
      end
    end,
  })
  if not cited then return end
  doc.blocks:insert(pandoc.Header(typst and 1 or 2, "References", pandoc.Attr("references", { "unnumbered" })))
  doc.blocks:insert(pandoc.Div({}, pandoc.Attr("refs")))
end

-- Typst refuses a link to an anchor that is not there, such as a section that the paper leaves out.
local function drop_dead_links(doc)
  local anchors = {}
  local function note(element) anchors[element.identifier] = true end
  doc:walk({ Div = note, Figure = note, Table = note, Span = note, Header = note })
  return doc:walk({
    Link = function(link)
      local anchor = link.target:match("^#(.*)$")
      if anchor and not anchors[anchor] then return link.content end
    end,
  })
end

function Pandoc(doc)
  doc = doc:walk({ Table = fit_table, Div = callout })
  if typst or not quarto then add_references(doc) end -- Quarto's pages have them in their appendix
  if not typst then return doc:walk({ Image = mark_wide }) end
  if doc.meta.flow then
    local function float(block) return block.identifier:match("^fig%-") and float_tall(block) or nil end
    doc = doc:walk({ Div = float, Figure = float })
  end
  return drop_dead_links(doc)
end
