--[[
job_submit.lua: makes '#STOKER' directives of 'sbatch --dataset=NAME', the option of
stoker's SPANK plugin. Put it beside slurm.conf on the hosts of slurmctld; a site with
a job_submit.lua of its own takes stoker_submit into it and calls it from there.

It refuses what is no dataset's name. Whether the dataset is known, and fits, is asked
of the controller right afterwards, by burst_buffer.lua. It checks no rights: everyone
may read every dataset (docs/slurm.md, Limits).
]]

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

-- stoker_submit adds the directives to those that the job has already.
function stoker_submit(job)
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

function slurm_job_submit(job, partitions, uid)
	return stoker_submit(job)
end

function slurm_job_modify(job, record, partitions, uid)
	return slurm.SUCCESS
end
