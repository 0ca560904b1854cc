package cache

// Peek returns the answer that a device would be given to a question just now, if that is fresh. It asks nobody, and begins
// nothing.
func (a *Answers[V]) Peek(t *Terms, q *Question[V]) (v V, fresh bool) {
	g := a.find(q.Group)
	if g == nil {
		return v, false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	next := g.decideLocked(t, q, a.now(), never, false)
	if !next.decided || next.ask || next.err != nil || next.state != Fresh {
		return v, false
	}
	return next.value, true
}
