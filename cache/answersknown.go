package cache

// Knows reports whether the upstream has answered for a group, and whether it refuses it just now. Both are false if it
// was not asked, or did not answer.
func (a *Answers[V]) Knows(key Key) (known, refused bool) {
	g := a.find(key)
	if g == nil {
		return false, false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.known, !g.known && a.now() < g.refusedUntil
}
