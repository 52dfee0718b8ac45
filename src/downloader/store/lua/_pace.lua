-- The pace of an aggregation or host after a cooldown; loaded in front of `_lib.lua`. See `docs/design/pace.md`.
--
-- Pure functions. A pace is a text of three numbers: the initial starts per second; the time of the first start (ms; 0
-- before it); and the rate at which the site last refused requests (starts per second; 0: not known).

local pace_at, pace_with_start, pace_after_refusal
do -- the names below are local to this block: a script may have 200 local names at the top
  -- Factors of growth per minute: far from the refused rate, and near it.
  local FAST, SLOW = 1.1, 1.005

  -- The range that counts as near, in shares of the refused rate. Below it, requests are expected to be accepted. Above
  -- it, the site has accepted more than it had refused, so it allows more than before.
  local NEAR_FROM, NEAR_TO = 0.9, 1.1

  -- The pace ends at this multiple of the refused rate, or, if that is not known, at this rate. A lower rate that a job
  -- or an operator asks for applies as well.
  local ENDS_AT, MAX_PER_S = 10, 1000

  -- A refusal tells the refused rate only if the site has accepted the pace for this time. Before that, the site may
  -- still count requests from before the cooldown.
  local SETTLED_MS = 60 * 1000

  -- The lowest initial pace. A measured rate may be low because few jobs came, and a site that refuses some URLs at any
  -- rate would halve the pace again and again. A site that allows fewer starts is respected by its cooldowns.
  local MIN_PER_S = 0.5

  local function read(pace)
    local per_s, began, refused = string.match(pace or '', '^(%S+) (%S+) (%S+)$')
    return tonumber(per_s or nil), tonumber(began or nil), tonumber(refused or nil)
  end

  local function written(per_s, began, refused)
    return string.format('%.6g %.0f %.6g', per_s, began, refused)
  end

  -- The starts per second that a pace allows at a time; nil if there is no pace or it has ended.
  function pace_at(pace, at)
    local per_s, began, refused = read(pace)
    if not (per_s and began and refused) then return nil end
    local ends = refused > 0 and ENDS_AT * math.max(refused, 2 * per_s) or MAX_PER_S
    local minutes = began > 0 and math.max(0, at - began) / 60000 or 0
    for _, phase in ipairs({{NEAR_FROM * refused, FAST}, {NEAR_TO * refused, SLOW}, {ends, FAST}}) do
      local to, growth = unpack(phase)
      if per_s < to then
        local takes = math.log(to / per_s) / math.log(growth)
        if takes > minutes then return per_s * growth ^ minutes end
        per_s, minutes = to, minutes - takes
      end
    end
    return nil
  end

  -- The pace after a start at `at`; the first start sets the beginning.
  function pace_with_start(pace, at)
    local per_s, began, refused = read(pace)
    return began == 0 and written(per_s, at, refused) or pace
  end

  -- The pace after a cooldown that begins at `at`, because the site refused a request that began at `requested`.
  -- `asked`: the rate that jobs or an operator ask for; nil: none. `measured`: recent starts per second, used if there
  -- is no pace yet; 0: not known. Returns nil for no pace.
  function pace_after_refusal(pace, requested, at, asked, measured)
    local current = pace_at(pace, at)
    if not current and measured <= 0 then return nil end
    if not current then return written(math.max(math.min(measured, asked or measured) / 2, MIN_PER_S), 0, 0) end
    local per_s, began, refused = read(pace)
    -- If the first request after the cooldown was refused, the pace was not the cause.
    if began == 0 or requested <= began then return written(per_s, 0, refused) end
    current = math.min(current, asked or current)
    return written(math.max(current / 2, MIN_PER_S), 0, at - began < SETTLED_MS and refused or current)
  end
end
