--[[
burst_buffer.lua: Slurm holds a job with '#STOKER dataset=NAME' until its data is
on the cache workers. Put it beside slurm.conf and burst_buffer.conf on the hosts of
slurmctld. One file for Slurm 22.05 to 25.x: it needs no argument that 22.05 does
not give, and the functions that older releases do not know do no harm there.

It decides nothing: each hook runs 'stoker slurm HOOK' and passes its verdict on.
docs/slurm.md says what each does.
]]

local stoker = "stoker" -- found by slurmctld's PATH; else write the whole path

-- quote makes one word of the shell of any string. Nothing that a user wrote gets
-- anywhere but through it.
local function quote(word)
	word = string.gsub(tostring(word), "%z", "")
	return "'" .. string.gsub(word, "'", "'\\''") .. "'"
end

-- run runs a hook and returns its verdict ("ok", "busy" or "error"; the last one
-- counts), the sentence behind it and what it printed before. A hook that was killed, or could not be
-- run, gives no verdict: that is an error. Exit codes are not asked for: Lua 5.1
-- does not tell them, and a hook that Slurm kills must never look like one that
-- has ended well.
local function run(hook, ...)
	local line = quote(stoker) .. " slurm " .. hook
	for _, word in ipairs({...}) do
		line = line .. " " .. quote(word)
	end
	local pipe = io.popen(line .. " 2>&1 </dev/null", "r")
	if not pipe then
		return "error", "stoker could not be run", ""
	end
	local said = pipe:read("*a") or ""
	pipe:close()
	local before, word, text = string.match("\n" .. said, "^(.*)\nstoker%-verdict (%a+) ?([^\n]*)\n")
	if word ~= "ok" and word ~= "busy" and word ~= "error" then
		slurm.log_error("stoker: %s ended without a verdict: %s", hook, said)
		return "error", "stoker: " .. hook .. " was stopped, or could not be run: see slurmctld's log", said
	end
	before = string.gsub(before, "^\n", "")
	if text ~= "" then
		slurm.log_info("stoker: %s: %s: %s", hook, word, text)
	end
	return word, text, before
end

-- user is the job's user, who is told to these hooks from 23.02 on.
local function user(uid)
	if string.match(tostring(uid), "^%d+$") then
		return "--uid", uid
	end
end

local function result(word, text)
	if word == "ok" then
		return slurm.SUCCESS
	elseif word == "busy" then
		return slurm.SUCCESS, "BUSY"
	end
	return slurm.ERROR, text
end

-- slurmctld itself runs this one and waits: 'check' takes 300 ms at most.
function slurm_bb_job_process(script, uid)
	return result(run("check", "--script", script, user(uid)))
end

-- Datasets are shared, and stoker reserves their space itself: there are no pools.
function slurm_bb_pools()
	return slurm.SUCCESS
end

function slurm_bb_setup(job, uid, gid, pool, size, script)
	return result(run("setup", "--job", job, "--uid", uid, "--script", script))
end

-- Waits for the data; where Slurm has slurm_bb_test_data_in, only claims it.
function slurm_bb_data_in(job, script, uid)
	return result(run("data-in", "--job", job, "--script", script, user(uid)))
end

-- From 24.05 on, every PollInterval.
function slurm_bb_test_data_in(job, script, uid)
	return result(run("test-data-in", "--job", job, "--script", script, user(uid)))
end

function slurm_bb_real_size()
	return slurm.SUCCESS
end

-- slurmctld itself runs this one, too.
function slurm_bb_paths(job, script, file)
	return result(run("paths", "--job", job, "--script", script, "--file", file))
end

function slurm_bb_pre_run(job, script, uid)
	return result(run("pre-run", "--job", job, "--script", script, user(uid)))
end

function slurm_bb_post_run()
	return slurm.SUCCESS
end

-- Datasets are read-only: nothing is staged out.
function slurm_bb_data_out()
	return slurm.SUCCESS
end

function slurm_bb_test_data_out()
	return slurm.SUCCESS
end

function slurm_bb_job_teardown(job, script)
	return result(run("teardown", "--job", job, "--script", script))
end

-- 'scontrol show bbstat JOB', or without JOB all. The caller's uid and gid may come
-- first; a job is the last of one or three arguments.
function slurm_bb_get_status(...)
	local words = {...}
	local word, text, said
	if #words % 2 == 1 then
		word, text, said = run("show", words[#words])
	else
		word, text, said = run("show")
	end
	if word ~= "ok" then
		return slurm.SUCCESS, "stoker: " .. text .. "\n" -- of an error Slurm would show nothing
	end
	return slurm.SUCCESS, said
end
