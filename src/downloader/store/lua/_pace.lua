-- The pace of an aggregation or host after a cooldown; loaded in front of `_lib.lua`. See `docs/design/pace.md`.
--
-- Pure functions. A pace is a text of three numbers: starts per second at its beginning; when it began (ms), which is its
-- first start, 0 before; and the rate at which the site refused requests before, 0 if that is not known.

local pace_at, pace_with_start, pace_after_refusal
do -- a script may have 200 local names
  -- Growth in a minute: far from the rate that was refused, and near it.
  local FAST, SLOW = 1.1, 1.005

  -- What counts as near, in shares of the refused rate. Below, requests are expected to be accepted. Above, the site has
  -- accepted what it had refused, so the site allows more than before.
  local NEAR_FROM, NEAR_TO = 0.9, 1.1

  -- The pace ends at so many times the rate that was refused, if nobody has asked for a lower one; or, where that rate
  -- is not known, at this rate.
  local ENDS_AT, MAX_PER_S = 10, 1000

  -- A refusal shows which rate a site refuses if the site has accepted the pace for so long. Before that, the site may
  -- still count the requests of the time before the cooldown.
  local SETTLED_MS = 60 * 1000

  -- The lowest pace at the beginning. What was measured may be low because few jobs came, and a site that refuses some
  -- URLs at any rate would halve the pace again and again. For a site that allows even less there are its cooldowns.
  local MIN_PER_S = 0.5

  local function read(pace)
    local per_s, began, refused = string.match(pace or '', '^(%S+) (%S+) (%S+)$')
    return tonumber(per_s or nil), tonumber(began or nil), tonumber(refused or nil)
  end

  local function written(per_s, began, refused)
    return string.format('%.6g %.0f %.6g', per_s, began, refused)
  end

  -- The starts per second that a pace allows at a time; nil for no pace, and for one that has ended.
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

  -- The pace after a start. It begins with its first.
  function pace_with_start(pace, at)
    local per_s, began, refused = read(pace)
    return began == 0 and written(per_s, at, refused) or pace
  end

  -- The pace after a cooldown that begins at `at`, because the site has refused a request that began at `requested`.
  -- `asked`: the rate that jobs or an operator ask for, nil: none. `measured`: starts per second lately, which counts if
  -- there was no pace; 0: not known. Returns nil for no pace.
  function pace_after_refusal(pace, requested, at, asked, measured)
    local had = pace_at(pace, at)
    if not had and measured <= 0 then return nil end
    if not had then return written(math.max(math.min(measured, asked or measured) / 2, MIN_PER_S), 0, 0) end
    local per_s, began, refused = read(pace)
    -- The first request was refused, so the pace was not the cause.
    if began == 0 or requested <= began then return written(per_s, 0, refused) end
    had = math.min(had, asked or had)
    return written(math.max(had / 2, MIN_PER_S), 0, at - began < SETTLED_MS and refused or had)
  end
end
