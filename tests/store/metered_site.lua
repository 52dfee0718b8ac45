-- An aggregation without a rate, or with one, fetches for an hour from a site that meters; behind `_pace.lua`.
-- ARGV[1]: allowed (requests per second), burst (that the site accepts at once after an idle time), retry_after (s; 0: the
-- site sends none), limit, rate (0: none), seed.
local site, MINUTES, BEGIN = cjson.decode(ARGV[1]), 60, 1e12
local now, tokens, filled = BEGIN, site.burst, BEGIN
local in_flight, last, cooling, cooled, cooldowns, pace = {}, 0, 0, 0, 0, nil
local starts, since, accepted = 0, nil, false
local begun, accepted_in = {}, {}

local function random()
  site.seed = site.seed * 16807 % 2147483647
  return site.seed / 2147483647
end

-- As in `begin_cooldown`.
local function refused(request)
  if request.began <= cooled then return end
  if now >= 2 * cooling - cooled then cooldowns = 0 end
  local per_s = accepted and starts / math.max(2, (now - since) / 1000) or 0
  cooled, cooldowns = now, cooldowns + 1
  pace = pace_after_refusal(pace, request.began, now, site.rate > 0 and site.rate or nil, per_s)
  starts, since, accepted = 0, nil, false
  local length = site.retry_after > 0 and site.retry_after or 30 * (1 + 0.2 * random()) * 2 ^ (cooldowns - 1)
  cooling = now + length * 1000
  begun[#begun + 1] = (now - BEGIN) / 60000
end

for minute = 1, MINUTES do accepted_in[minute] = 0 end
while now < BEGIN + MINUTES * 60000 do
  local per_s, first = pace_at(pace, now), 1
  if site.rate > 0 then per_s = math.min(per_s or site.rate, site.rate) end
  local at = math.max(now, cooling, per_s and last + 1000 / per_s or 0)
  for place, request in ipairs(in_flight) do
    if request.ends < in_flight[first].ends then first = place end
  end
  if in_flight[first] and (#in_flight >= site.limit or in_flight[first].ends <= at) then
    local request = table.remove(in_flight, first)
    now = math.max(now, request.ends)
    if request.ok then
      local minute = math.min(MINUTES, math.floor((now - BEGIN) / 60000) + 1)
      accepted, accepted_in[minute] = true, accepted_in[minute] + 1
    else
      refused(request)
    end
  else
    now, last, starts, since = at, at, starts + 1, since or at
    tokens, filled = math.min(site.burst, tokens + (now - filled) / 1000 * site.allowed), now
    local ok = tokens >= 1
    if ok then tokens = tokens - 1 end
    if pace then pace = pace_with_start(pace, now) end
    in_flight[#in_flight + 1] = {began = now, ends = now + 50 + 100 * random(), ok = ok}
  end
end
return cjson.encode({cooldowns = begun, accepted = accepted_in})
