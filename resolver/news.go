package resolver

// maxNews bounds NewKeys: a manifest that names more new objects at once is another app's, or a first import.
const maxNews = 10_000

// NewKeys lists the object keys that a manifest names and known does not, in the order of the document, for who wants to
// have new objects before a channel points at them. doc must have been parsed well. Those of deleted versions are left out,
// and more than 10,000 are cut off.
func NewKeys(doc []byte, known *Keys) []string {
	n := news{known: known, w: newWalker(doc, "$", new(Faults))}
	n.w.object(func(name []byte) {
		if string(name) == "versions" {
			n.w.array(func(int) { n.version() })
		} else {
			n.w.skip()
		}
	})
	return n.keys
}

type news struct {
	known *Keys
	w     *walker
	keys  []string
	seen  map[keyID]bool
}

func (n *news) version() {
	before, deleted := len(n.keys), false
	n.w.object(func(name []byte) {
		switch string(name) {
		case "deleted":
			n.w.bool(&deleted)
		case "r2_path":
			n.add(n.w.bytes())
		case "manifest":
			n.w.array(func(int) {
				n.w.object(func(name []byte) {
					if string(name) == "s3_path" {
						n.add(n.w.bytes())
					} else {
						n.w.skip()
					}
				})
			})
		default:
			n.w.skip()
		}
	})
	if deleted {
		for _, key := range n.keys[before:] {
			delete(n.seen, idOf(key))
		}
		n.keys = n.keys[:before]
	}
}

func (n *news) add(key []byte) {
	if len(key) == 0 || len(n.keys) == maxNews {
		return
	}
	id := idOf(key)
	if _, ok := n.known.find(id); ok || n.seen[id] {
		return
	}
	if n.seen == nil {
		n.seen = map[keyID]bool{}
	}
	n.seen[id] = true
	n.keys = append(n.keys, string(key))
}
