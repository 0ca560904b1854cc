package caddymodule

import (
	"context"
	"net/http"
	"net/http/httptest"

	"github.com/capgo-edge/capgo-edge/cache"
)

// ObjectStats tells what the object store of a storage directory holds and has done; tests wait for it, where an answer
// would come too late.
func ObjectStats(dir string) (stats cache.DiskStats) {
	runtimes.Range(func(key, value any) bool {
		if disk := value.(*runtime).openedDisk.Load(); disk != nil && key == dir {
			stats = disk.Stats()
		}
		return true
	})
	return stats
}

// RelayMarked reports whether an app was found to be answered differently for each device.
func RelayMarked(dir, appID string) bool {
	marked := false
	eachRuntime(func(r *runtime) {
		if r.dir != dir || r.answers == nil {
			return
		}
		for _, group := range r.answers.Groups() {
			marked = marked || group.Name == appID && r.answers.Marked(group)
		}
	})
	return marked
}

// LearnedLines is what GET /capgo_edge/learned answers for an app.
func LearnedLines(ctx context.Context, appID string) string {
	w := httptest.NewRecorder()
	r := httptest.NewRequestWithContext(ctx, http.MethodGet, "/capgo_edge/learned?app_id="+appID, nil)
	if err := serveLearned(w, r); err != nil {
		return err.Error()
	}
	return w.Body.String()
}
