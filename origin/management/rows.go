package management

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// maxPages ends a list that does not.
const maxPages = 100_000

// App reads the app's own row.
func (c *Client) App(ctx context.Context, appID string) (json.RawMessage, error) {
	return c.get(ctx, "/app/"+url.PathEscape(appID), nil)
}

// Channels yields the app's channels, oldest first. An error is the last that is yielded, here and below.
func (c *Client) Channels(ctx context.Context, appID string) iter.Seq2[json.RawMessage, error] {
	return c.pages(ctx, "/channel", appID)
}

// Bundles yields the app's versions, newest first, without deleted ones.
func (c *Client) Bundles(ctx context.Context, appID string) iter.Seq2[json.RawMessage, error] {
	return c.pages(ctx, "/bundle", appID)
}

// fullPage is how many rows a page has that another may follow (protocol 6.1).
const fullPage = 50

// pages yields the rows of numbered pages, up to one that has none which is new: a server that does not know pages gives the
// same rows for ever, if not in the same bytes.
func (c *Client) pages(ctx context.Context, path, appID string) iter.Seq2[json.RawMessage, error] {
	return func(yield func(json.RawMessage, error) bool) {
		seen, full := map[string]bool{}, true
		for n := range maxPages {
			raw, err := c.page(ctx, path, url.Values{"app_id": {appID}, "page": {strconv.Itoa(n)}}, full)
			if isEmptyPage(err) {
				return
			}
			var rows []json.RawMessage
			if err == nil && json.Unmarshal(raw, &rows) != nil {
				err = fmt.Errorf("%s is not a list of rows; check the address of the upstream", path)
			}
			if err != nil {
				yield(nil, err)
				return
			}
			full = len(rows) >= fullPage
			known := len(seen)
			for _, row := range rows {
				seen[nameOf(row)] = true
			}
			if len(seen) == known {
				return
			}
			for _, row := range rows {
				if !yield(row, nil) {
					return
				}
			}
		}
		yield(nil, fmt.Errorf("%s has no end", path))
	}
}

// page reads a numbered page. /bundle has none that is empty, but an error in its place, which a database that failed might
// give as well; then what is not listed would count as deleted. So behind a page that was full the error is believed only if it
// stays.
func (c *Client) page(ctx context.Context, path string, query url.Values, full bool) (json.RawMessage, error) {
	raw, err := c.get(ctx, path, query)
	for _, wait := range [...]time.Duration{time.Second, 3 * time.Second} {
		if !full || !isEmptyPage(err) {
			break
		}
		if c.waiting != nil {
			c.waiting(fmt.Errorf("%w: the end of the list, unless it is a fault", err), wait)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		raw, err = c.get(ctx, path, query)
	}
	return raw, err
}

// nameOf is the same for the same row: its id if it has one, for other columns may change while pages are read.
func nameOf(row json.RawMessage) string {
	var known struct {
		ID json.RawMessage `json:"id"`
	}
	if json.Unmarshal(row, &known) != nil || known.ID == nil {
		return string(row)
	}
	return string(known.ID)
}

// isEmptyPage reports the error that stands for an empty page of bundles (protocol 6.1).
func isEmptyPage(err error) bool {
	failed, ok := errors.AsType[*StatusError](err)
	return ok && failed.Status == http.StatusBadRequest && failed.Code == "cannot_get_bundle"
}

// Devices yields the app's devices. There may be millions, at fifty a page.
func (c *Client) Devices(ctx context.Context, appID string) iter.Seq2[json.RawMessage, error] {
	return func(yield func(json.RawMessage, error) bool) {
		query := url.Values{"app_id": {appID}}
		for {
			raw, err := c.get(ctx, "/device", query)
			var page struct {
				Data       []json.RawMessage `json:"data"`
				NextCursor json.RawMessage   `json:"nextCursor"`
				HasMore    bool              `json:"hasMore"`
			}
			if err == nil && json.Unmarshal(raw, &page) != nil {
				err = errors.New("/device is not a page of rows; check the address of the upstream")
			}
			if err != nil {
				yield(nil, err)
				return
			}
			for _, row := range page.Data {
				if !yield(row, nil) {
					return
				}
			}
			cursor := cursorOf(page.NextCursor)
			switch {
			case !page.HasMore:
				return
			case cursor == "" || cursor == query.Get("cursor"):
				yield(nil, errors.New("/device says that there are more devices, and not where"))
				return
			}
			query.Set("cursor", cursor)
		}
	}
}

// cursorOf is a cursor as it is sent back: a text without its quotes, or a number.
func cursorOf(raw json.RawMessage) string {
	var text string
	if json.Unmarshal(raw, &text) == nil {
		return text
	}
	return string(raw)
}
