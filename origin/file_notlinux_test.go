//go:build !linux

package origin_test

const changeTimes = false
