-- What Quarto adds to pandoc's Markdown, for HTML and Typst: numbered figures and tables, references to them, call-outs,
-- folded code. Everything else is left to pandoc.
local typst = FORMAT == "typst"
local WORDS = { fig = "Figure", tbl = "Table" }
local TITLES = { note = "Note", tip = "Tip", warning = "Warning", important = "Important", caution = "Caution" }
local numbers = {}  -- label -> number, for figures and tables
local anchors = {}  -- every identifier: Typst refuses a link to one that is not there

local function kind_of(label)
  local kind = label:match("^(%a+)%-")
  return WORDS[kind] and kind or nil
end

local function raw(text)
  return pandoc.RawBlock(typst and "typst" or "html", text)
end

local function typst_string(text)
  return '"' .. text:gsub("\\", "\\\\"):gsub('"', '\\"'):gsub("\n", " ") .. '"'
end

-- Numbers in the order of the document -----------------------------------------------------------------------------------------

local function collect(doc)
  local count = { fig = 0, tbl = 0 }
  local function number(element)
    anchors[element.identifier] = true
    local kind = kind_of(element.identifier)
    if kind and not numbers[element.identifier] then
      count[kind] = count[kind] + 1
      numbers[element.identifier] = count[kind]
    end
  end
  doc:walk({
    traverse = "topdown",
    Div = number,
    Figure = number,
    Table = number,
    Span = function(span) anchors[span.identifier] = true end,
    Header = function(header) anchors[header.identifier] = true end,
  })
end

-- Figures and tables with captions ---------------------------------------------------------------------------------------------

-- By the time that figures are built, Typst's pictures are raw Typst already.
local function is_picture(block)
  local first = block.content[1]
  return #block.content == 1 and (first.t == "Image" or (first.t == "RawInline" and first.text:match("^#box%(image") ~= nil))
end

-- The last paragraph of a captioned Div is its caption.
local function split_caption(div)
  local blocks, last = div.content, div.content[#div.content]
  if #blocks > 1 and last.t == "Para" and not is_picture(last) then
    return pandoc.List(table.move(blocks, 1, #blocks - 1, 1, {})), last.content
  end
  return blocks, pandoc.Inlines({})
end

local LONG = 15 -- rows from which a table may be broken over two pages

local function is_long(blocks)
  local rows = 0
  for _, block in ipairs(blocks) do
    for _, body in ipairs(block.t == "Table" and block.bodies or {}) do rows = rows + #body.body end
  end
  return rows > LONG
end

local function breakable_figure(blocks)
  blocks:insert(1, raw("#[#show figure: set block(breakable: true)"))
  blocks:insert(raw("]"))
  return blocks
end

local function captioned(label, kind, blocks, caption)
  local number = numbers[label]
  if typst then
    local out = pandoc.List({ raw(("#captioned(%s, %s, ["):format(typst_string(kind), number and "true" or "false")) })
    out:insert(pandoc.Plain(caption))
    out:insert(raw("])["))
    out:extend(blocks)
    out:insert(raw("]" .. (number and (" <%s>"):format(label) or "")))
    return is_long(blocks) and breakable_figure(out) or out
  end
  if number then
    local mark = pandoc.Span({ pandoc.Str(WORDS[kind] .. "\u{a0}" .. number .. (#caption > 0 and ":" or "")) }, { class = "number" })
    caption = pandoc.Inlines({ mark, pandoc.Space() }) .. caption
  end
  for i, block in ipairs(blocks) do
    if block.t == "Para" and is_picture(block) then blocks[i] = pandoc.Plain(block.content) end
  end
  return pandoc.Figure(blocks, { long = #caption > 0 and { pandoc.Plain(caption) } or {} }, pandoc.Attr(label, { kind }))
end

-- Wide tables ------------------------------------------------------------------------------------------------------------------

local LINE, PADDING = 102, 3 -- what fits into a line of a table on A4, and the room between two columns, in characters
local SMALLEST = 0.74

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

-- The sum over the columns of their longest texts, heads left out, in characters.
local function text_width(tbl)
  local longest, total = {}, 0
  for _, body in ipairs(tbl.bodies) do
    for _, row in ipairs(body.body) do
      for column, cell in ipairs(row.cells) do
        longest[column] = math.max(longest[column] or 0, pandoc.text.len(pandoc.utils.stringify(cell.contents)))
      end
    end
  end
  for _, length in pairs(longest) do total = total + length end
  return total
end

-- Typst only: a table wider than the page is set smaller, and columns get room by their longest word and their longest text.
-- Returns the factor for the text size.
local function fit_columns(tbl)
  if not typst then return 1 end
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
  local scale = math.max(SMALLEST, LINE / most)
  local room = math.max(LINE / scale - least, 0)
  local total = math.max(LINE / scale, least)
  for column, spec in ipairs(tbl.colspecs) do
    local extra = most > least and room * (texts[column] - words[column]) / (most - least) or 0
    tbl.colspecs[column] = { spec[1], (words[column] + PADDING + extra) / total }
  end
  return math.max(0.55, math.min(scale, LINE / least))
end

-- Call-outs --------------------------------------------------------------------------------------------------------------------

local function callout(div, kind)
  local title, content = nil, div.content
  if div.attributes.title then
    title = pandoc.Inlines({ pandoc.Str(div.attributes.title) })
  elseif content[1] and content[1].t == "Header" then
    title = content[1].content
    content = pandoc.List(table.move(content, 2, #content, 1, {}))
  end
  title = title or pandoc.Inlines({ pandoc.Str(TITLES[kind]) })
  if typst then
    local out = pandoc.List({ raw(("#callout(%s, ["):format(typst_string(kind))), pandoc.Plain(title), raw("])[") })
    out:extend(content)
    out:insert(raw("]"))
    return out
  end
  local out = pandoc.List({ pandoc.Div({ pandoc.Plain(title) }, { class = "callout-title" }) })
  out:extend(content)
  return pandoc.Div(out, pandoc.Attr("", { "callout", kind }, { role = "note" }))
end

-- Elements ---------------------------------------------------------------------------------------------------------------------

local elements = {}

function elements.Div(div)
  if div.classes:includes("sticky") then return { raw("#block(sticky: true, spacing: 1.05em)["), div.content[1], raw("]") } end
  for kind in pairs(TITLES) do
    if div.classes:includes("callout-" .. kind) then return callout(div, kind) end
  end
  local kind = kind_of(div.identifier) or (div.classes:includes("captioned") and (div.classes:includes("tbl") and "tbl" or "fig"))
  if kind then
    local blocks, caption = split_caption(div)
    return captioned(div.identifier, kind, blocks, caption)
  end
end

function elements.Figure(figure)
  if typst or kind_of(figure.identifier) then
    local caption = figure.caption.long[1] and figure.caption.long[1].content or pandoc.Inlines({})
    return captioned(figure.identifier, "fig", figure.content, caption)
  end
end

function elements.Table(tbl)
  local caption, label = tbl.caption.long[1] and tbl.caption.long[1].content, tbl.identifier
  local scale = fit_columns(tbl)
  local many = #tbl.colspecs > 7 -- of these, a number may stand above its spread; of fewer columns, none is broken
  local wide = many or text_width(tbl) > 80
  for _, row in ipairs(many and tbl.head.rows or {}) do
    for _, cell in ipairs(row.cells) do cell.contents = cell.contents:walk({ Str = breakable }) end
  end
  tbl = tbl:walk({ Inlines = keep_together })
  local out = pandoc.List({ pandoc.Table({ long = {} }, tbl.colspecs, tbl.head, tbl.bodies, tbl.foot) })
  if not typst then
    out = pandoc.List({ pandoc.Div(out, pandoc.Attr("", { "table-scroll", wide and "wide" or "narrow", many and "many" or "few" }, { tabindex = "0", role = "region", ["aria-label"] = "Table" })) })
  elseif scale < 1 then
    out = pandoc.List({ raw(("#scaled(%.2f)["):format(scale)), out[1], raw("]") })
  end
  if caption or label ~= "" then return captioned(label, "tbl", out, caption or pandoc.Inlines({})) end
  return typst and is_long(out) and breakable_figure(out) or out
end

function elements.CodeBlock(block)
  if block.classes:includes("cell-code") then
    local fold, summary = block.attributes.fold, block.attributes.summary
    local code = pandoc.CodeBlock(block.text, pandoc.Attr("", { block.classes[1] }))
    if typst and block.classes:includes("alone") then return { raw('#printed("alone")['), code, raw("]") } end
    if typst or fold == "false" then return code end
    local open = ('<details class="code"%s><summary>%s</summary>'):format(fold == "show" and " open" or "", summary:gsub("[&<>]", { ["&"] = "&amp;", ["<"] = "&lt;", [">"] = "&gt;" }))
    return { raw(open), code, raw("</details>") }
  elseif block.classes:includes("output") and typst then
    return { raw('#printed("output")['), pandoc.CodeBlock(block.text), raw("]") }
  end
end

function elements.Image(image)
  if typst then
    local words = image.attributes.alt or pandoc.utils.stringify(image.caption)
    if not image.src:match("^[%a-]*figure%-%d+%-%d+%.%a+$") then -- not one of ours: Typst ends at a file that it does not find
      return pandoc.Emph({ pandoc.Str(("[a picture that is not here: %s]"):format(words ~= "" and words or image.src)) })
    end
    local width = image.attributes.width
    local alt = words
    local size = width and (", width: " .. width:gsub("px$", "pt")) or ""
    return pandoc.RawInline("typst", ("#box(image(%s, alt: %s%s))"):format(typst_string(image.src), typst_string(alt), size))
  elseif image.attributes.width then -- inches as CSS pixels, so that the style sheet may still shrink the picture
    local inches = image.attributes.width:match("^([%d.]+)in$")
    if inches then image.attributes.width = tostring(math.floor(tonumber(inches) * 96 + 0.5)) end
    return image
  end
end

function elements.Link(link)
  if typst then
    local anchor = link.target:match("^#(.*)$")
    return (anchor and not anchors[anchor]) and link.content or link
  elseif not link.target:match("^%a+:") then
    link.target = link.target:gsub("%.ipynb$", ".html"):gsub("%.ipynb#", ".html#")
    return link
  end
end

-- @fig-x and @tbl-x become links; every other citation is left to citeproc.
function elements.Cite(cite)
  local out = pandoc.Inlines({})
  for i, citation in ipairs(cite.citations) do
    local label, word = citation.id, WORDS[kind_of(citation.id)]
    if not numbers[label] then return nil end
    local text = pandoc.Str((citation.mode == "SuppressAuthor" and "" or word .. "\u{a0}") .. numbers[label])
    if i > 1 then out:extend({ pandoc.Str(","), pandoc.Space() }) end
    out:insert(pandoc.Link(text, "#" .. label))
  end
  return out
end

-- Typst only: one paragraph between a heading and the code or figure that it is about goes to the next page with these, so that
-- no heading is left behind.
local function stick_to_figures(blocks)
  for i = 2, #blocks - 1 do
    local after = blocks[i + 1]
    local code = after.t == "CodeBlock" and after.classes:includes("cell-code")
    local shows = code or after.t == "Table" or (after.t == "Div" and after.classes:includes("captioned"))
    if blocks[i].t == "Para" and blocks[i - 1].t == "Header" and shows then
      blocks[i] = pandoc.Div({ blocks[i] }, { class = "sticky" })
    end
  end
end

function Pandoc(doc)
  collect(doc)
  if typst then stick_to_figures(doc.blocks) end
  return doc:walk(elements)
end
