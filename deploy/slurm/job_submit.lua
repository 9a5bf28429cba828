--[[
job_submit.lua: refuses a job whose user may not read what it asks for ('stoker dataset
set NAME --readers'), and makes '#STOKER' directives of 'sbatch --dataset=NAME', the
option of stoker's SPANK plugin. Put it beside slurm.conf on the hosts of slurmctld; a
site with a job_submit.lua of its own takes the functions above slurm_job_submit into it
and calls stoker_submit from there.

It is the user's sentence at sbatch. The authority is the controller, which grants the
job's claim: without this file, or while no controller answers, such a job is held then.
]]

local stoker = "stoker" -- found by slurmctld's PATH; else write the whole path

-- quote makes one word of the shell of any string. Nothing that a user wrote gets
-- anywhere but through it.
local function quote(word)
	word = string.gsub(tostring(word), "%z", "")
	return "'" .. string.gsub(word, "'", "'\\''") .. "'"
end

-- option finds what the plugin has passed on.
local function option(job, name)
	for _, line in pairs(job.spank_job_env or {}) do
		for _, prefix in ipairs({name .. "=", "SPANK_" .. name .. "="}) do
			if string.sub(line, 1, #prefix) == prefix then
				return string.sub(line, #prefix + 1)
			end
		end
	end
end

local function refuse(text)
	slurm.log_user("stoker: %s", text)
	return slurm.ERROR
end

-- add adds the plugin's datasets to the directives that the job has already.
local function add(job)
	local asked, more = option(job, "STOKER_DATASET"), option(job, "STOKER_DATASET_OPTIONS") or ""
	if asked == nil then
		return slurm.SUCCESS
	end
	if string.find(more, "%c") then
		return refuse("--dataset-options: want one line, such as 'onmiss=wait deadline=30m'")
	end
	local lines = {}
	for word in string.gmatch(asked .. ",", "([^,]*),") do
		local name = string.match(word, "^[^=]*") -- what follows is a place on the nodes: the plugin's
		if not (string.match(name, "^[a-z0-9][a-z0-9._-]*$") or string.match(name, "^[a-z0-9][a-z0-9._-]*@[1-9]%d*$")) then
			return refuse("--dataset: want NAME, NAME@GENERATION or NAME=/folder, and commas between several")
		end
		if #lines == 0 and more ~= "" then
			name = name .. " " .. more
		end
		lines[#lines + 1] = "#STOKER dataset=" .. name
	end
	local all = table.concat(lines, "\n")
	if job.burst_buffer ~= nil and job.burst_buffer ~= "" then
		all = job.burst_buffer .. "\n" .. all
	end
	job.burst_buffer = all
	return slurm.SUCCESS
end

-- directives are the job's lines: of its script those before the first that is neither
-- empty nor a comment, as Slurm finds them.
local function directives(job)
	local found = {}
	for line in string.gmatch((job.script or "") .. "\n", "([^\n]*)\n") do
		line = string.gsub(line, "\r$", "")
		if line ~= "" and string.sub(line, 1, 1) ~= "#" then
			break
		end
		if string.match(line, "^#STOKER%s") then
			found[#found + 1] = line
		end
	end
	for line in string.gmatch((job.burst_buffer or "") .. "\n", "([^\n]*)\n") do
		if string.match(line, "^#STOKER%s") then
			found[#found + 1] = line
		end
	end
	return found
end

-- rights asks whether the job's user may read its data. slurmctld waits for it, 300 ms at
-- most. What it does not learn, and what is no directive, burst_buffer.lua says.
local function rights(job, uid)
	local lines = directives(job)
	if #lines == 0 or #lines > 64 then
		return slurm.SUCCESS
	end
	local command = quote(stoker) .. " slurm check --uid " .. quote(string.format("%d", uid))
	for _, line in ipairs(lines) do
		command = command .. " --directive " .. quote(line)
	end
	local pipe = io.popen(command .. " 2>&1 </dev/null", "r")
	if not pipe then
		return slurm.SUCCESS
	end
	local said = pipe:read("*a") or ""
	pipe:close()
	local why = string.match("\n" .. said, "\nstoker%-verdict error ([^\n]*)\n")
	if why then
		return refuse(why)
	end
	local unchecked = string.match("\n" .. said, "\nstoker%-verdict ok ([^\n]+)\n")
	if unchecked then
		slurm.log_info("stoker: check: ok: %s", unchecked)
	end
	return slurm.SUCCESS
end

-- stoker_submit is what a job_submit.lua calls with the job and its user.
function stoker_submit(job, uid)
	local done = add(job)
	if done ~= slurm.SUCCESS then
		return done
	end
	return rights(job, uid)
end

function slurm_job_submit(job, partitions, uid)
	return stoker_submit(job, uid)
end

function slurm_job_modify(job, record, partitions, uid)
	return slurm.SUCCESS
end
