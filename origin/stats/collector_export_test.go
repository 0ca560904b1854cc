package stats

// ReadAnswer is exported to tests.
var ReadAnswer = readAnswer

// SetMaxHeld bounds the devices that are remembered as held.
func (f *Forwarder) SetMaxHeld(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.turns.maxHeld = n
}

// Remembered is how many lanes, apps and waits the forwarder has in memory.
func (f *Forwarder) Remembered() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	t := &f.turns
	return len(t.lanes) + len(t.apps) + len(t.waiting) + t.ready.Len() + t.held + f.running
}
