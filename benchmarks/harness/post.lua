-- POST files in turn; print what came of it as one line of JSON. Arguments: H:NAME=VALUE, F:FILE.
local requests, turn = {}, 0

function init(arguments)
  local headers, bodies = {}, {}
  for _, argument in ipairs(arguments) do
    if argument:sub(1, 2) == "H:" then
      local name, value = argument:match("^H:([^=]+)=(.*)$")
      headers[name] = value
    else
      local file = assert(io.open(argument:sub(3), "rb"))
      bodies[#bodies + 1] = file:read("*a")
      file:close()
    end
  end
  for index, body in ipairs(bodies) do
    requests[index] = wrk.format("POST", nil, headers, body)
  end
end

function request()
  turn = turn % #requests + 1
  return requests[turn]
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '{"requests": %d, "microseconds": %d, "p50": %d, "p99": %d, "refused": %d, "broken": %d}\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
