package origin

import "context"

// Nowhere is a storage that holds nothing.
type Nowhere struct{}

// Identity implements Store.
func (Nowhere) Identity() string { return "nowhere" }

// Get implements Store. It always returns ErrNotFound.
func (Nowhere) Get(context.Context, string, GetOptions) (*Object, error) { return nil, ErrNotFound }
