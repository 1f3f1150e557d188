-- What Quarto adds to pandoc's Markdown, for HTML and Typst: numbered figures and tables, references to them, folded code.
-- It runs after common.lua. Everything else is left to pandoc.
local typst = FORMAT == "typst"
local WORDS = { fig = "Figure", tbl = "Table" }
local numbers = {}  -- label -> number, for figures and tables

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
    local kind = kind_of(element.identifier)
    if kind and not numbers[element.identifier] then
      count[kind] = count[kind] + 1
      numbers[element.identifier] = count[kind]
    end
  end
  doc:walk({ traverse = "topdown", Div = number, Figure = number })
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

local function captioned(label, kind, blocks, caption)
  local number = numbers[label]
  if typst then
    local out = pandoc.List({ raw(("#captioned(%s, %s, ["):format(typst_string(kind), number and "true" or "false")) })
    out:insert(pandoc.Plain(caption))
    out:insert(raw("])["))
    out:extend(blocks)
    out:insert(raw("]" .. (number and (" <%s>"):format(label) or "")))
    return out
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

-- Elements ---------------------------------------------------------------------------------------------------------------------

local elements = {}

function elements.Div(div)
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
  if not link.target:match("^%a+:") then
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

function Pandoc(doc)
  collect(doc)
  return doc:walk(elements)
end
