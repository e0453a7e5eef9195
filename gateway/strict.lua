-- What Envoy's JSON transcoder cannot be told: it drops unknown JSON fields, reads
-- JSON that is not RFC 8259 (trailing commas, single quotes) and lets a query
-- parameter overrule the path. This script runs before it and refuses all three.
--
-- render.py puts before it, from the contracts:
--   MESSAGES  message -> field name -> message of the field, or true for a leaf
--   ROUTES    route -> { body = message, true (any JSON) or false, root = path of the body
--             in the request, query = set of names }
--   BARE      gRPC code -> JSON of the answer to a status without ErrorInfo
--   NAMESPACE of the dynamic metadata that the error mappers read

local MAX_DEPTH = 32
local MAX_KEY = 256
local MAX_NAME = 100
local INVALID_VALUE = '"domain":"gateway.finity","metadata":{},"reason":"INVALID_VALUE"'
local byte, find, match, sub = string.byte, string.find, string.match, string.sub

local function fail(reason, text)
  error({ reason = reason, text = sub(text, 1, MAX_NAME) }, 0)
end

local function bad(at)
  fail("INVALID_JSON", tostring(at))
end

local function skip(text, at)
  local code = byte(text, at)
  return code and code <= 32 and match(text, "^[ \t\r\n]*()", at) or at
end

local function string_end(text, at)
  at = at + 1
  while true do
    local stop, char = match(text, '^[^"\\%z\1-\31]*()(.?)', at)
    if char == '"' then
      return stop + 1
    end
    at = char == "\\"
      and (match(text, '^["\\/bfnrt]()', stop + 1) or match(text, "^u%x%x%x%x()", stop + 1))
    if not at then
      bad(stop)
    end
  end
end

local function number_end(text, at)
  local stop = match(text, "^-?0()", at) or match(text, "^-?%d+()", at) or bad(at)
  stop = match(text, "^%.%d+()", stop) or stop
  return match(text, "^[eE][+-]?%d+()", stop) or stop
end

local function scalar_end(text, at)
  local code = byte(text, at)
  if code and code < 58 then -- below the letters
    return number_end(text, at)
  end
  return match(text, "^true()", at) or match(text, "^false()", at) or match(text, "^null()", at) or bad(at)
end

-- Dotted like BadRequest. path holds keys and indices from path[1] on, below the root path[0].
local function name_of(path, depth)
  local name = path[0]
  for level = 1, depth do
    local step = path[level]
    if type(step) == "number" then
      name = name .. "[" .. step .. "]"
    else
      name = (name == "" and "" or name .. ".") .. step
    end
  end
  return name
end

local value_end

-- Cost is linear in the body because paths are joined only to be reported, and
-- because below a leaf, where nothing has a name in the contract, keys are not even read.
local function kind_of(text, first, last, kind, path, depth)
  local fields = MESSAGES[kind]
  local found = true
  if fields then
    path[depth] = sub(text, first, math.min(last, first + MAX_KEY))
    -- A name spelt with escapes is not looked up but refused: no field needs them.
    found = fields[path[depth]] or fields["*"] or fail("UNKNOWN_FIELD", name_of(path, depth))
  end
  if last - first >= MAX_KEY then
    bad(first)
  end
  return found
end

local function object_end(text, at, kind, path, depth)
  at = skip(text, at + 1)
  if sub(text, at, at) == "}" then
    return at + 1
  end
  while true do
    if sub(text, at, at) ~= '"' then
      bad(at)
    end
    local stop = string_end(text, at)
    local inner = kind_of(text, at + 1, stop - 2, kind, path, depth)
    at = skip(text, stop)
    if sub(text, at, at) ~= ":" then
      bad(at)
    end
    at = skip(text, value_end(text, skip(text, at + 1), inner, path, depth))
    local char = sub(text, at, at)
    if char == "}" then
      return at + 1
    elseif char ~= "," then
      bad(at)
    end
    at = skip(text, at + 1)
  end
end

local function array_end(text, at, kind, path, depth)
  at = skip(text, at + 1)
  if sub(text, at, at) == "]" then
    return at + 1
  end
  path[depth] = 0
  while true do
    at = skip(text, value_end(text, at, kind, path, depth))
    local char = sub(text, at, at)
    if char == "]" then
      return at + 1
    elseif char ~= "," then
      bad(at)
    end
    at = skip(text, at + 1)
    path[depth] = path[depth] + 1
  end
end

function value_end(text, at, kind, path, depth)
  local char = sub(text, at, at)
  if char == '"' then
    return string_end(text, at)
  elseif char ~= "{" and char ~= "[" then
    return scalar_end(text, at)
  elseif depth == MAX_DEPTH then
    bad(at)
  end
  return (char == "[" and array_end or object_end)(text, at, kind, path, depth + 1)
end

local function check_body(text, kind, root)
  local at = skip(text, 1)
  if MESSAGES[kind] and sub(text, at, at) ~= "{" then
    bad(at)
  end
  at = skip(text, value_end(text, at, kind, { [0] = root }, 0))
  if at <= #text then
    bad(at)
  end
end

local function check_query(path, known)
  local query = match(path, "%?(.*)") or ""
  for part in string.gmatch(query, "[^&]+") do
    local name = match(part, "^[^=]*")
    if not known[name] then
      fail("UNKNOWN_QUERY_PARAMETER", name)
    end
  end
end

local function check(handle, path, route)
  check_query(path, route.query)
  local body = handle:body()
  if not body or body:length() == 0 then
    return
  elseif not route.body then
    fail("UNEXPECTED_BODY", "")
  end
  check_body(body:getBytes(0, body:length()), route.body, route.root)
end

function envoy_on_request(handle)
  local route = ROUTES[handle:filterContext():get("route") or ""]
  if not route then
    return
  end
  local good, failure = pcall(check, handle, handle:headers():get(":path"), route)
  if type(failure) == "string" then -- an error of this script itself
    handle:logErr(failure)
    handle:respond({ [":status"] = "500" }, "")
  elseif not good then
    handle:streamInfo():dynamicMetadata():set(NAMESPACE, "reason", failure.reason)
    handle:respond({ [":status"] = "400" }, failure.text)
  end
end

-- The transcoder says "path: invalid value ..." and quotes the value; only the path may leave.
local function without_value(text)
  local quote = find(text, '"field":"', 1, true) + 8
  local name = match(text, "^([%w_.%[%]]+): ", quote + 1) or ""
  return sub(text, 1, quote) .. name .. sub(text, string_end(text, quote) - 1)
end

local function rewritten(text, code)
  if find(text, INVALID_VALUE, 1, true) then
    return without_value(text)
  elseif find(text, '"@type":"type.googleapis.com/google.rpc.ErrorInfo"', 1, true) then
    return text
  end
  return BARE[match(text, '^{"code":(%d+)') or code or "13"] or BARE["13"]
end

local function answer_failure(handle, code)
  local body = handle:body(true)
  -- Not before: waiting for the body ends the life of every other object of the handle.
  local headers = handle:headers()
  headers:replace("cache-control", "no-store")
  local text = rewritten(body:getBytes(0, body:length()), code)
  headers:replace("content-type", "application/json")
  headers:replace("content-length", tostring(body:setBytes(text)))
  local delay = match(text, '"retry_delay":"(%d+%.?%d*)s"')
  if delay then
    headers:replace("retry-after", tostring(math.max(1, math.ceil(tonumber(delay)))))
  end
end

function envoy_on_response(handle)
  local headers = handle:headers()
  if find(headers:get("content-type") or "", "application/grpc", 1, true) then
    return
  end
  local code = headers:get("grpc-status")
  for _, name in ipairs({ "status", "message", "status-details-bin", "encoding", "accept-encoding" }) do
    headers:remove("grpc-" .. name)
  end
  if headers:get(":status") >= "400" then
    answer_failure(handle, code)
  end
end
