{{/* The chart's name: what objects are named after, whatever the release. */}}
{{- define "aad-pod-identity.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* Release and chart: what the user-facing roles are named after. */}}
{{- define "aad-pod-identity.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "aad-pod-identity.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "aad-pod-identity.mic" -}}
{{- printf "%s-mic" (include "aad-pod-identity.name" .) -}}
{{- end -}}

{{- define "aad-pod-identity.nmi" -}}
{{- printf "%s-nmi" (include "aad-pod-identity.name" .) -}}
{{- end -}}

{{/* What a Deployment or DaemonSet selects by. It cannot be changed once installed. */}}
{{- define "aad-pod-identity.selectors" -}}
app.kubernetes.io/name: {{ include "aad-pod-identity.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "aad-pod-identity.labels" -}}
{{ include "aad-pod-identity.selectors" . }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "aad-pod-identity.managed" -}}
{{- if eq (.Values.operationMode | toString) "managed" -}}true{{- end -}}
{{- end -}}

{{/* "true" when pods may use identities of their own namespace only. */}}
{{- define "aad-pod-identity.namespaced" -}}
{{- $asked := or .Values.forceNamespaced .Values.forceNameSpaced | toString | lower -}}
{{- if or (include "aad-pod-identity.managed" .) (eq $asked "true") -}}true{{- else -}}false{{- end -}}
{{- end -}}

{{/* A list entry for each flag of a dict, unless its value is "". false and 0 are values. */}}
{{- define "aad-pod-identity.flags" -}}
{{- range $name, $value := . }}
{{- if not (or (kindIs "invalid" $value) (eq ($value | toString) "")) }}
{{- if kindIs "float64" $value }}{{ $value = int64 $value }}{{ end }}
- {{ printf "--%s=%v" $name $value | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{/* A text, though somebody wrote it as a number: Helm reads 1234567 as 1.234567e+06. */}}
{{- define "aad-pod-identity.text" -}}
{{- if kindIs "float64" . }}{{ int64 . }}{{ else }}{{ . }}{{ end -}}
{{- end -}}

{{/* "true" when a switch is on, however it is spelt; else nothing. */}}
{{- define "aad-pod-identity.on" -}}
{{- if has (. | toString | lower) (list "true" "t" "1") }}true{{ end -}}
{{- end -}}

{{/* A port as a number: (list value default). */}}
{{- define "aad-pod-identity.port" -}}
{{- index . 0 | default (index . 1) | int -}}
{{- end -}}

{{/* A container's security context: uid 0, nothing writable, and the capabilities that are listed. */}}
{{- define "aad-pod-identity.locked" -}}
allowPrivilegeEscalation: false
capabilities:
  drop:
    - ALL
  {{- with .capabilities }}
  add:
    {{- toYaml . | nindent 4 }}
  {{- end }}
readOnlyRootFilesystem: true
runAsUser: {{ .user }}
{{- if ne (int .user) 0 }}
runAsNonRoot: true
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* What a container needs that runs once or only waits: namespaces with a quota refuse pods that do not say. */}}
{{- define "aad-pod-identity.small" -}}
limits:
  memory: 128Mi
requests:
  cpu: 10m
  memory: 64Mi
{{- end -}}

{{/* Annotations of a hook: (list event weight). What failed stays, so that it can be looked at. */}}
{{- define "aad-pod-identity.hook" -}}
helm.sh/hook: {{ index . 0 }}
helm.sh/hook-weight: {{ index . 1 | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end -}}
