{{- define "confide.name" -}}
{{ printf "%s-%s" .root.Release.Name .part | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- define "confide.selector" -}}
app.kubernetes.io/name: confide
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .part }}
{{- end }}

{{- define "confide.labels" -}}
{{ include "confide.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{- define "confide.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end }}

{{- /* Pod Security Standard "restricted", and a file system that only the state volume and /tmp can be written in. */}}
{{- define "confide.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- /* fsGroup only on a volume whose root is not the group's yet: never again over keys that are 0600. */}}
{{- define "confide.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "confide.placement" -}}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "confide.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{- /* While a member is set up its pod only waits, so that `confide ... init` can be run in it. */}}
{{- define "confide.waits" -}}
command: [python, -c, "import signal; signal.signal(signal.SIGTERM, lambda *_: exit(0)); signal.pause()"]
{{- end }}

{{- /* An admitted member's folder, copied out of a Secret while the volume holds none; never over one. */}}
{{- define "confide.takeFolder" -}}
- name: take-folder
  image: {{ include "confide.image" .root }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  command: [sh, -ec]
  args:
    - |
      test ! -e {{ .folder }} || exit 0
      umask 077
      rm -rf {{ .folder }}.new
      mkdir {{ .folder }}.new
      install -m 0600 -t {{ .folder }}.new /folder/*
      mv {{ .folder }}.new {{ .folder }}
  securityContext: {{- include "confide.containerSecurity" . | nindent 4 }}
  resources: {requests: {cpu: 10m, memory: 32Mi}, limits: {memory: 128Mi}}
  volumeMounts:
    - {name: state, mountPath: /state}
    - {name: folder, mountPath: /folder, readOnly: true}
{{- end }}

{{- define "confide.service" -}}
apiVersion: v1
kind: Service
metadata:
  name: {{ include "confide.name" . }}
  labels: {{- include "confide.labels" . | nindent 4 }}
  {{- with .values.service.annotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  type: {{ .values.service.type }}
  {{- if ne .values.service.type "ClusterIP" }}
  externalTrafficPolicy: {{ .values.service.externalTrafficPolicy }}
  {{- end }}
  {{- if eq .values.service.type "LoadBalancer" }}
  {{- with .values.service.loadBalancerSourceRanges }}
  loadBalancerSourceRanges: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- end }}
  selector: {{- include "confide.selector" . | nindent 4 }}
  ports:
    {{- range $name, $port := .ports }}
    - {name: {{ $name }}, port: {{ $port }}, targetPort: {{ $name }}, protocol: TCP}
    {{- end }}
{{- end }}

{{- define "confide.allowed" -}}
- ports:
    {{- range .ports }}
    - {port: {{ . }}, protocol: TCP}
    {{- end }}
  {{- with .from }}
  from:
    {{- range . }}
    - ipBlock: {cidr: {{ . | quote }}}
    {{- end }}
  {{- end }}
{{- end }}

{{- define "confide.dns" -}}
- ports:
    - {port: 53, protocol: UDP}
    - {port: 53, protocol: TCP}
{{- end }}

{{- define "confide.claim" -}}
accessModes: [ReadWriteOnce]
{{- with .className }}
storageClassName: {{ . }}
{{- end }}
resources: {requests: {storage: {{ .size }}}}
{{- end }}
