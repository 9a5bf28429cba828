package planner

// Waves cuts a worker's part of a plan into runs of shards of at most limit
// bytes each, in order; a shard that is larger is a wave of its own. Together
// they are the part. The runs are as few as the order allows.
func (p *Plan) Waves(part int, shards []Shard, limit int64) [][]uint32 {
	var waves [][]uint32
	var left int64 // of the last wave
	for _, n := range p.Part(part) {
		if b := shards[n].Bytes; len(waves) == 0 || b > left {
			waves, left = append(waves, nil), limit
		}
		last := len(waves) - 1
		waves[last] = append(waves[last], n)
		left -= shards[n].Bytes
	}
	return waves
}
